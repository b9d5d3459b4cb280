"""Every example runs: over real sockets, from other frameworks, and the page in a real browser."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from served import served

import penstock as ps
from penstock.http.serve import serving

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def ask(url: str, body: Any = None) -> Any:
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=20) as response:
        return response.read().decode()


def test_hello_and_batched() -> None:
    async def main() -> None:
        for name, body, check in (
            ("hello", {"name": "Ada"}, lambda text: text == '"Hello, Ada!"'),
            ("batched", {"text": "one"}, lambda text: len(json.loads(text)) == 8),
        ):
            module = load(name)
            async with serving(module.app) as server:
                service = next(iter(module.app.services))
                url = f"http://127.0.0.1:{server.port}/{service}"
                assert check(await asyncio.to_thread(ask, url, body))

    asyncio.run(main())


def test_remotes(monkeypatch: pytest.MonkeyPatch) -> None:
    with served("batched:app", cwd=EXAMPLES) as (_, one), served("batched:app", cwd=EXAMPLES) as (_, two):
        monkeypatch.setenv("EMBED_URLS", f"{one} {two}")
        module = load("remotes")

        async def main() -> None:
            async with serving(module.app) as server:
                url = f"http://127.0.0.1:{server.port}/nearest"
                body = {"query": "river", "texts": ["lake", "river", "stream"]}
                assert json.loads(await asyncio.to_thread(ask, url, body)) == "river"

        asyncio.run(main())


def test_batched_items_fail_alone() -> None:
    async def main() -> None:
        embed = load("batched").embed
        async with ps.Runtime(embed):
            good, bad = await asyncio.gather(embed("a text"), embed(""), return_exceptions=True)
            assert len(good) == 8
            assert isinstance(bad, ValueError)

    asyncio.run(main())


def test_graph() -> None:
    async def main() -> None:
        module = load("graph")
        async with ps.Runtime(module.app):
            chunks = await asyncio.gather(*(collect(module.control(float(k), "go")) for k in range(3)))
            assert chunks == [[(k + 2.0) * n for n in (1, 2, 3)] for k in range(3)]

    async def collect(call: Any) -> list[float]:
        return [action async for action in call]

    asyncio.run(main())


def test_hybrid_from_a_synchronous_program() -> None:
    answers = load("hybrid").main()
    assert answers[0] == "features of image 0, goal of grasp the red cube"
    assert len(answers) == 14


def listens(pid: int, port: int) -> bool:
    """Whether this very process does: between its choice and its use, the port may have become another's."""
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in found)


@contextmanager
def running(*command: str) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, *(part.replace("PORT", str(port)) for part in command)], cwd=EXAMPLES.parent)
    try:
        end = time.monotonic() + 30
        while not listens(process.pid, port):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)  # a poll with an end
        yield port
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize(
    ("needed", "command"),
    [
        ("fastapi", ("-m", "uvicorn", "examples.fastapi_app:web", "--port", "PORT", "--log-level", "warning")),
        ("tornado", ("examples/tornado_app.py", "PORT")),
        ("aiohttp", ("examples/aiohttp_app.py", "PORT")),
    ],
)
def test_called_from_other_frameworks(needed: str, command: tuple[str, ...]) -> None:
    pytest.importorskip(needed)
    with running(*command) as port:
        assert "49" in ask(f"http://127.0.0.1:{port}/square/7")
        if needed == "fastapi":
            assert ask(f"http://127.0.0.1:{port}/models/square", {"x": 7}) == "49"


def test_the_streams_page_in_a_browser() -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"

    async def main() -> str:
        async with serving(load("stream").app) as server:
            process = await asyncio.create_subprocess_exec(
                browser,
                *flags.split(),
                "--virtual-time-budget=6000",
                "--dump-dom",
                f"http://127.0.0.1:{server.port}/page",
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            out, _ = await asyncio.wait_for(process.communicate(), 60)
            return out.decode()

    page = asyncio.run(main())
    assert "<li>19</li>" in page
    assert "ended" in page


def test_continuous_writes_the_same_sentence_alone_and_in_company() -> None:
    module = load("continuous")

    async def main() -> None:
        async with serving(module.app) as server:

            async def text(prompt: str, seed: int) -> str:
                return "".join([letter async for letter in module.writer(prompt, 60, seed)])

            alone = await text("The scheduler ", 1)
            assert len(alone) == 60
            together = await asyncio.gather(text("The scheduler ", 1), *(text("A call " * 500, n) for n in range(20)))
            assert together[0] == alone
            url = f"http://127.0.0.1:{server.port}/writer"
            events = await asyncio.to_thread(ask, url, {"prompt": "The scheduler ", "letters": 60, "seed": 1})
            lines = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ") and line != "data: "]
            assert "".join(line for line in lines if isinstance(line, str)) == alone

    asyncio.run(main())


def test_what_is_unpacked_at_once_stays_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("memory")
    budget, lock, held, most, unpack = 64 << 20, threading.Lock(), 0, 0, module.unpack

    def counted(file: bytes) -> bytes:
        nonlocal held, most
        with lock:
            held += module.size(file)
            most = max(most, held)
        try:
            return unpack(file)
        finally:
            with lock:
                held -= module.size(file)

    monkeypatch.setattr(module, "unpack", counted)
    texts = [b"one line\n" * (mib << 20 >> 3) for mib in (1, 2, 20, 30, 50)]
    files = [gzip.compress(text, 1) for text in texts]

    async def main() -> None:
        async with ps.Runtime(module.app):
            calls = [(n, module.lines(files[n]), module.digest(files[n])) for _ in range(3) for n in range(len(files))]
            for n, counted_lines, digested in [(n, one.start(), other.start()) for n, one, other in calls]:
                assert await counted_lines == texts[n].count(b"\n")
                assert await digested == hashlib.sha256(texts[n]).hexdigest()

    asyncio.run(main())
    assert max(map(len, texts)) <= most <= budget


def test_what_is_unpacked_is_what_was_leased() -> None:
    module = load("memory")
    file = gzip.compress(b"a\nb\n" * 1000)
    lies, large = file[:-4] + (100).to_bytes(4, "little"), file[:-4] + (1 << 30).to_bytes(4, "little")

    async def main() -> None:
        async with serving(module.app) as server:

            def send(body: bytes) -> tuple[int, str]:
                request = urllib.request.Request(f"http://127.0.0.1:{server.port}/lines", body)
                request.add_header("content-type", "application/octet-stream")
                try:
                    with urllib.request.urlopen(request, timeout=20) as response:
                        return response.status, response.read().decode()
                except urllib.error.HTTPError as error:
                    return error.code, error.read().decode()

            assert await asyncio.to_thread(send, file) == (200, "2000")
            for body, status, said in (
                (lies, 400, "as large as it says"),
                (b"no gzip", 413, "ram"),
                (large, 413, "1073741824"),
            ):
                code, text = await asyncio.to_thread(send, body)
                assert code == status and said in text, (code, text)

    asyncio.run(main())
