"""A server that speaks OpenAI's protocol on a raw socket and shares no code with ours: well, or as badly as it is asked to.

What it does is chosen by the `model` of a request, so that one server can do all of it. Run as a program it is a server of
its own process, which can be killed: it prints its URL.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.utils import formatdate
from typing import Any

MODELS = ("tiny", "other")
REFUSALS: dict[str, tuple[int, str, str]] = {  # status, further head lines, body
    "too long": (
        400,
        "",
        '{"error":{"message":"too many tokens: 9000 > 2048","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}',
    ),
    "no key": (
        401,
        "",
        '{"error":{"message":"Incorrect API key provided: sk-secret","type":"invalid_request_error","code":"invalid_api_key"}}',
    ),
    "not there": (
        404,
        "",
        '{"error":{"message":"model \\"not there\\" not found","type":"not_found_error","param":null,"code":null}}',
    ),
    "odd": (422, "", '{"detail":[{"loc":["body","x"],"msg":"field required"}]}'),
    "limited": (
        429,
        "Retry-After: 7\r\n",
        '{"error":{"message":"Rate limit reached","type":"requests","code":"rate_limit_exceeded"}}',
    ),
    "limited ms": (429, "Retry-After: 1\r\nretry-after-ms: 250\r\n", '{"error":{"message":"soon"}}'),
    "limited reset": (
        429,
        "x-ratelimit-reset-requests: 120ms\r\nx-ratelimit-reset-tokens: 1m2.5s\r\n",
        '{"error":{"message":"tokens per minute"}}',
    ),
    "limited date": (429, "Retry-After: {in a hundred seconds}\r\n", "{}"),
    "overloaded": (
        503,
        "Retry-After: 3\r\n",
        '{"error":{"message":"its queue is full","type":"overloaded_error","code":"overloaded"}}',
    ),
    "busy": (503, "Retry-After: 3\r\n", '{"error":"server busy, please try again.  maximum pending requests exceeded"}'),
    "broken": (
        500,
        "",
        '{"error":{"message":"CUDA error: device-side assert","type":"InternalServerError","param":null,"code":500}}',
    ),
    "proxy": (502, "Content-Type: text/html\r\n", "<html>\r\n<h1>502 Bad Gateway</h1>"),
}


def vector(text: str | list[int]) -> list[float]:
    """Three numbers that tell texts apart."""
    codes = [ord(c) for c in text] if isinstance(text, str) else text
    return [float(len(codes)), float(sum(codes) % 97), 0.5]


def chunk(model: str, delta: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}


class Foreign:
    """The server, and what it has seen."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.opened = self.open = 0
        self.left = 0  # streams whose reader went away
        self.may_end = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = head[0].split(" ")
                asked = json.loads(body) if body else None
                self.requests.append((f"{method} {path}", headers, asked))
                await self.answer(reader, writer, f"{method} {path.partition('?')[0]}", asked)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str, asked: Any) -> None:
        model = (asked or {}).get("model")
        if model in REFUSALS:
            status, more, said = REFUSALS[model]
            more = more.replace("{in a hundred seconds}", formatdate(time.time() + 100, usegmt=True))
            more = more if "Content-Type" in more else more + "Content-Type: application/json\r\n"
            writer.write(f"HTTP/1.1 {status} X\r\n{more}Content-Length: {len(said)}\r\n\r\n{said}".encode())
        elif what == "GET /v1/models":
            self.whole(
                writer, {"object": "list", "data": [{"id": m, "object": "model", "max_model_len": 2048} for m in MODELS]}
            )
        elif what == "POST /v1/chat/completions" and asked.get("stream") and model != "no stream":
            await self.stream(reader, writer, model, asked)
        elif what == "POST /v1/chat/completions":
            await self.chat(reader, writer, model, asked)
        elif what == "POST /v1/responses":
            events = [{"type": "response.created"}, {"type": "response.output_text.delta", "delta": "hi"}]
            events += [] if model == "cut" else [{"type": "response.completed", "response": {"status": "completed"}}]
            self.begin(writer)
            for event in events:
                self.event(writer, event)
            writer.write(b"0\r\n\r\n")
        elif what == "POST /v1/embeddings":
            self.embed(writer, model, asked)
        elif what == "POST /v1/rerank":
            found = [{"index": n, "relevance_score": len(d) / 100} for n, d in enumerate(asked["documents"])]
            found.sort(key=lambda result: -result["relevance_score"])
            usage = {"total_tokens": sum(len(d) + len(asked["query"]) for d in asked["documents"])}
            self.whole(writer, {"model": model, "results": found, "usage": usage})
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found")

    def whole(self, writer: asyncio.StreamWriter, told: Any, status: int = 200) -> None:
        body = json.dumps(told).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )

    async def chat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: str, asked: Any) -> None:
        if model == "never":
            self.left += not await reader.read(1)
            raise ConnectionResetError
        if model == "garbage":
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"nope"')
            return
        if model == "error in 200":
            self.whole(writer, {"error": {"message": "no capacity", "code": 503}})
            return
        if model == "no object":
            self.whole(writer, [1, 2])
            return
        text = "".join(self.words(asked))
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        self.whole(
            writer, {"id": "c1", "object": "chat.completion", "created": 1, "model": model, "choices": choices, "usage": usage}
        )

    def words(self, asked: Any) -> Iterator[str]:
        return (f"{n} " for n in range(asked.get("max_tokens", 3)))

    def begin(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n")

    def event(self, writer: asyncio.StreamWriter, told: Any) -> None:
        data = told if isinstance(told, bytes) else b"data: %b\n\n" % json.dumps(told).encode()
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: str, asked: Any) -> None:
        self.begin(writer)
        self.event(writer, b": keep-alive\n\n")
        choices = range(asked.get("n", 1))
        for index in choices:
            self.event(writer, chunk(model, {"role": "assistant", "content": ""}, index=index))
        for word in self.words(asked):
            for index in choices:
                self.event(writer, chunk(model, {"content": word}, index=index))
            await writer.drain()
            if model == "slow":
                await asyncio.sleep(0.005)
        if model == "hang":
            self.left += not await reader.read(1)
            raise ConnectionResetError
        if model == "reset":
            writer.transport.abort()
            raise ConnectionResetError
        if model == "half":  # the connection ends, the chunked body does not
            raise ConnectionResetError
        if model == "garbage":
            self.event(writer, b"data: {no json\n\n")
        if model == "no HTTP":
            writer.write(b"this is no chunk\r\n")
        if model == "error inside":
            self.event(writer, {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}})
        if model == "refused inside":
            self.event(writer, {"error": {"message": "too long", "type": "invalid_request_error", "code": None}})
        if model != "silent":
            last = choices[:-1] if model == "half of them" else choices
            for index in last:
                self.event(writer, chunk(model, {}, "stop", index))
            if (asked.get("stream_options") or {}).get("include_usage"):
                self.event(
                    writer,
                    {
                        **chunk(model, {}),
                        "choices": [],
                        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
                    },
                )
            if model not in ("no done", "half of them"):
                self.event(writer, b"data: [DONE]\n\n")
        if model == "late end":
            await self.may_end.wait()
        if model == "endless":
            while True:
                self.event(writer, b": and more\n\n")
                await writer.drain()
        writer.write(b"0\r\n\r\n")

    def embed(self, writer: asyncio.StreamWriter, model: str, asked: Any) -> None:
        texts = asked["input"]
        if "bad" in texts:
            self.whole(writer, {"error": {"message": "'bad' is no text", "code": 400}}, 400)
            return
        if model == "short":
            texts = texts[1:]
        rows = [vector(text) for text in texts]
        plain = asked.get("encoding_format") != "base64" or model == "floats"
        found = [row if plain else base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode() for row in rows]
        data = [{"object": "embedding", "index": n, "embedding": row} for n, row in enumerate(found)]
        tokens = sum(map(len, texts))
        self.whole(
            writer,
            {"object": "list", "data": data[::-1], "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}},
        )


@asynccontextmanager
async def foreign(port: int = 0) -> AsyncIterator[Foreign]:
    """One in this process; its URL ends in /v1."""
    stand = Foreign()
    server = await asyncio.start_server(stand.serve, "127.0.0.1", port)
    stand.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield stand
    finally:
        server.close()


@contextmanager
def apart() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """One in a process of its own, and its URL."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


async def main() -> None:
    async with foreign() as stand:
        print(stand.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
