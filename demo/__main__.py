"""`python -m demo`: serve a real embedding model, index the project's own docs through it, search them, and chat.

The chat model is tiny and trained here, on the same docs, in half a minute: it babbles. CHAT=0 leaves it out.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from threading import local
from typing import Any

from penstock.http.serve import serving
from penstock.http.server import CannotListen

BEGAN = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
CLIENTS = 16
QUESTIONS = (
    "What happens to a request when its caller hangs up?",
    "How are tenants kept from starving each other?",
    "When is a batch released?",
)


def sentences() -> list[tuple[str, str]]:
    """(file, sentence) of the project's documents and docstrings, in order, without repeats."""
    files = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("src/penstock/**/*.py"))]
    found: dict[str, str] = {}
    for file in files:
        if file.name.endswith("zh-CN.md"):
            continue
        for sentence in _prose(file):
            found.setdefault(sentence, str(file.relative_to(ROOT)))
    return [(where, sentence) for sentence, where in found.items()]


def _prose(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        text = "\n\n".join(re.findall(r'"""(.*?)"""', text, re.S))
    else:
        text = re.sub(r"```.*?```", "", text, flags=re.S)
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z`])", " ".join(paragraph.split())):
            if 30 <= len(sentence) <= 400 and not sentence.startswith(("#", "|", "!")):
                yield sentence.lstrip("-*> ")


class Stopped(Exception):
    """Ctrl-C: nothing more is to be asked."""


class Client:
    """A keep-alive connection for each thread that calls."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.here = local()
        self.stopped = False

    def ask(self, path: str, body: dict[str, str]) -> object:
        if self.stopped:
            raise Stopped
        if not hasattr(self.here, "connection"):
            self.here.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection = self.here.connection
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        data = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {data['detail']}")
        return data


def index(client: Client, texts: list[str]) -> tuple[list[list[float]], list[float], float]:
    """Vectors in order, seconds of each call, and of the whole."""
    took: list[float] = []

    def one(text: str) -> list[float]:
        began = time.perf_counter()
        vector = client.ask("/embed", {"text": text})
        took.append(time.perf_counter() - began)
        assert isinstance(vector, list)
        return vector

    began = time.perf_counter()
    vectors = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        for n, vector in enumerate(pool.map(one, texts), 1):
            vectors.append(vector)
            _progress(n, len(texts), n / (time.perf_counter() - began))
    return vectors, sorted(took), time.perf_counter() - began


def _progress(done: int, total: int, rate: float) -> None:
    if sys.stdout.isatty():
        filled = 30 * done // total
        print(f"\r  [{'#' * filled}{'.' * (30 - filled)}] {done}/{total}  {rate:.0f}/s ", end="", flush=True)
        if done == total:
            print()
    elif done == total or done % max(1, total // 5) == 0:
        print(f"  {done}/{total} sentences, {rate:.0f}/s", flush=True)


def work(client: Client) -> None:
    """What a user would do, from plain threads and over real HTTP."""
    pages = sentences()
    print(f"indexing {len(pages)} sentences of the project's own docs, {CLIENTS} callers, one sentence a call")
    vectors, took, seconds = index(client, [sentence for _, sentence in pages])
    for question in QUESTIONS:
        asked = client.ask("/embed", {"text": question})
        assert isinstance(asked, list)
        scores = sorted(((sum(map(float.__mul__, asked, v)), n) for n, v in enumerate(vectors)), reverse=True)
        print(f"\n{question}")
        for score, n in scores[:3]:
            where, sentence = pages[n]
            print(f"  {score:.2f}  {sentence[:150]}{'...' if len(sentence) > 150 else ''}\n        {where}")
    p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
    print(
        f"\n{len(pages) / seconds:.0f} sentences/s; call p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms; {batches(client.port)}"
    )


def batches(port: int) -> str:
    """Batch sizes, from the server's own metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    metrics = dict(line.rsplit(" ", 1) for line in connection.getresponse().read().decode().splitlines() if line[:1] != "#")
    connection.close()
    starts = float(metrics['penstock_batch_size_count{service="embed-minilm"}'])
    mean = float(metrics['penstock_batch_size_sum{service="embed-minilm"}']) / starts
    return f"{starts:.0f} batches of {mean:.1f} on average"


async def trained(stop: asyncio.Event) -> Path | None:
    """The folder of the tiny chat model, which is made when it is not there yet; None where that is not wanted or possible."""
    if os.environ.get("CHAT") == "0":
        return None
    missing = [name for name in ("torch", "transformers", "openai") if find_spec(name) is None]
    if missing:
        print(f"no chat model: {', '.join(missing)} is not installed (`make demo` does)")
        return None
    folder = Path(os.environ.get("TINY_LM", ROOT / "build" / "tiny-lm"))
    if not (folder / "model.safetensors").exists():
        seconds = os.environ.get("TRAIN", "30")
        print(f"training a tiny chat model on the project's own docs for {seconds} s (kept in {shown(folder)})", flush=True)
        made = folder.with_name(f"{folder.name}.{os.getpid()}")
        made.mkdir(parents=True)
        command = (sys.executable, "-m", "demo.tiny_lm", str(made), "--train", seconds)
        training = await asyncio.create_subprocess_exec(*command, cwd=ROOT, start_new_session=True)
        ended, stopped = asyncio.ensure_future(training.wait()), asyncio.ensure_future(stop.wait())
        await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not ended.done():
            training.kill()
        if await ended:
            rmtree(made)
            if stop.is_set():
                return None
            raise SystemExit("demo: the tiny chat model could not be trained; CHAT=0 leaves it out")
        made.rename(folder)  # whole or not at all
    return folder


def shown(path: Path) -> str:
    """From the project's folder, if it is in there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def everything(client: Client, url: str, chat: bool) -> None:
    """What a user would do."""
    work(client)
    if chat:
        converse(url)


def converse(url: str) -> None:
    """The same through OpenAI's own client, as any program that has it would."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    question = QUESTIONS[0]
    print(f"\nthrough the openai client, to the tiny model (it babbles): {question}\n  ", end="")
    messages: Any = [{"role": "user", "content": question}]
    began = time.perf_counter()
    answer = client.chat.completions.create(
        model="tiny", messages=messages, stream=True, max_tokens=60, seed=7, stream_options={"include_usage": True}
    )
    for chunk in answer:
        if chunk.choices:
            print((chunk.choices[0].delta.content or "").replace("\n", " "), end="", flush=True)
        elif chunk.usage:
            took = time.perf_counter() - began
            print(f"\n  {chunk.usage.completion_tokens} tokens, {chunk.usage.completion_tokens / took:.0f} a second")
    vector = client.embeddings.create(model="minilm", input=question).data[0].embedding
    print(f"its embedding: {len(vector)} numbers, {', '.join(f'{x:.3f}' for x in vector[:4])} ...")
    documents = [sentence for _, sentence in sentences()[:40]]
    body = {"model": "minilm", "query": question, "documents": documents, "top_n": 2}
    ranked: Any = client.post("/rerank", body=body, cast_to=object)
    for result in ranked["results"]:
        print(f"reranked: {result['relevance_score']:.2f}  {result['document']['text'][:120]}")


async def main() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        from demo.app import app, models
    except ImportError as error:
        raise SystemExit(f"demo: {error}; `make demo` installs what is missing") from None
    chat = await trained(stop)
    if stop.is_set():
        print("\nstopped")
        return
    if chat is not None:
        app.add_model(models(chat)[-1])
    async with AsyncExitStack() as stack:
        port = int(os.environ.get("PORT", "8000"))
        try:
            server = await stack.enter_async_context(serving(app, "127.0.0.1", port))
        except CannotListen:
            print(f"port {port} is in use (PORT=... chooses); the system chooses another one")
            server = await stack.enter_async_context(serving(app, "127.0.0.1", 0))
        url = f"http://127.0.0.1:{server.port}"
        print(f"the model is up at {url} after {time.monotonic() - BEGAN:.1f} s", flush=True)
        client = Client(server.port)
        working = asyncio.get_running_loop().run_in_executor(None, everything, client, url, chat is not None)
        waiting = asyncio.ensure_future(stop.wait())
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if stop.is_set():
            client.stopped = True
            await asyncio.gather(working, return_exceptions=True)
            print("\nstopped")
            return
        working.result()
        if os.environ.get("ONCE"):
            return
        print(f'\nask it yourself:\n  curl {url}/similarity --json \'{{"a": "a cat sat", "b": "a kitten rests"}}\'')
        print(f"  any client of OpenAI: base_url={url}/v1")
        print(f"  {url}/metrics  /openapi.json  /healthz\nCtrl-C stops it", flush=True)
        await stop.wait()
        print()


if __name__ == "__main__":
    asyncio.run(main())
