"""A server on a free port, and raw sockets to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from penstock.http.limits import Limits
from penstock.http.message import Out, Request, Response
from penstock.http.server import Server

SMALL = Limits(
    body=100_000,
    head=4096,
    headers=20,
    target=1000,
    pipeline=4,
    head_timeout=0.2,
    body_timeout=0.2,
    idle_timeout=0.4,
    stall_timeout=0.2,
    linger=0.1,
    period=0.02,
)


class Items:
    """A streamed answer of `count` items of `size` bytes, `gap` seconds apart."""

    def __init__(self, count: int, gap: float = 0.0, size: int = 4, head: bytes = b"", fail: bool = False) -> None:
        self.count, self.gap, self.size, self.head, self.fail = count, gap, size, head, fail

    async def run(self, out: Out) -> None:
        waiting = out.start(200, self.head, sized=b"content-length" in self.head)
        for _ in range(self.count):
            if waiting is not None:
                await waiting
            if self.gap:
                await asyncio.sleep(self.gap)
            waiting = out.write(b"x" * self.size)
        if self.fail:
            raise ValueError("broken")
        out.end()


class Echo:
    """The handler under test: remembers what it was asked, and what was cancelled."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.cancelled = 0
        self.running = 0

    def __call__(self, request: Request) -> Any:
        self.requests.append(request)
        path = request.path
        if path == "/raise":
            raise ValueError("broken")
        if path == "/empty":
            return Response(204, b"x-a: b\r\n")
        if path == "/big":
            return Response(200, b"", b"b" * int(request.query))
        if path.startswith("/stream"):
            return Items(3, fail=path.endswith("fail"))
        if path == "/flood":
            return Items(1_000_000, size=10_000)
        if path == "/drip":
            return Items(1000, gap=0.01)
        if path == "/sized":
            return Items(2, head=b"content-length: %b\r\n" % (request.query or b"8"))
        if path == "/unended":
            return _Unended()
        if path.startswith("/slow"):
            return self.slow(request, float(request.query or b"0.05"))
        if path == "/later":
            return self.later()
        return Response(
            200, b"content-type: text/plain\r\n", request.method.encode() + b" " + path.encode() + b" " + request.body
        )

    async def slow(self, request: Request, seconds: float) -> Response:
        self.running += 1
        try:
            await asyncio.sleep(seconds)
            if request.path.endswith("raise"):
                raise ValueError("broken")
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return Response(200, b"", b"slow")

    async def later(self) -> Items:
        await asyncio.sleep(0)
        return Items(2)


class _Unended:
    async def run(self, out: Out) -> None:
        out.start(200, b"", b"abc")


class Client:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def all(self, seconds: float = 20.0) -> bytes:
        """Everything until the server closes."""
        return await asyncio.wait_for(self.reader.read(-1), seconds)

    async def until(self, mark: bytes, seconds: float = 20.0) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(mark), seconds)

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of one answer with a content-length."""
        head = await self.until(b"\r\n\r\n")
        length = [int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")]
        body = await asyncio.wait_for(self.reader.readexactly(length[0]), 20.0) if length else b""
        return int(head[9:12]), head, body

    def close(self) -> None:
        self.writer.close()


class Stand:
    """A running server, its handler, and clients that are closed with it."""

    def __init__(self, server: Server, echo: Echo) -> None:
        self.server, self.echo = server, echo
        self.clients: list[Client] = []

    async def client(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.server.port, limit=1 << 24))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> bytes:
        """Everything that comes back, until the server closes."""
        client = await self.client()
        client.send(data)
        return await client.all()

    async def connections(self, count: int) -> list[Any]:
        """The server's connections, when it has this many."""
        await self.until(lambda: len(self.server.connections) == count)
        return list(self.server.connections)

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < end, "the condition never came true"
            await asyncio.sleep(0.005)


@asynccontextmanager
async def standing(limits: Limits = SMALL, **options: Any) -> AsyncIterator[Stand]:
    echo = Echo()
    server = Server(echo, limits=limits)
    await server.start(**options)
    stand = Stand(server, echo)
    try:
        yield stand
    finally:
        for client in stand.clients:
            client.close()
        await server.stop(0.2)
        assert not server.connections
        assert server.bodies.held == 0


def get(path: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    """One request as bytes."""
    head = [f"{method} {path} HTTP/1.1", "Host: a", *lines]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body
