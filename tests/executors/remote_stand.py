"""Servers that misbehave, on real sockets, and waiting for what they and the executor do."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

LONGEST = 30.0  # seconds for anything that is waited for

Behaviour = Callable[["Odd", asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until this is so."""
    async with asyncio.timeout(LONGEST):
        while not condition():
            await asyncio.sleep(0.002)


def ok(body: bytes = b"1", head: bytes = b"content-type: application/json\r\n") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


class Odd:
    """A server whose `behaviour` answers each request as it likes; it keeps what it was sent."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[bytes] = []
        self.connections = self.most = self.opened = 0
        self.left = 0  # connections that the other side closed while an answer was due
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.connections += 1
        self.most = max(self.most, self.connections)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                self.requests.append(head + body)
                await self.behaviour(self, reader, writer, head + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections -= 1
            writer.close()


@asynccontextmanager
async def odd(behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> AsyncIterator[Odd]:
    """A misbehaving server and its URL, without a path."""
    stand = Odd(behaviour)
    server = await asyncio.start_server(stand.serve, "127.0.0.1", 0, ssl=tls)
    stand.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield stand
    finally:
        server.close()


async def well(odd: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(ok())


async def failing(odd: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\noops")


async def hanging(odd: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    if not await reader.read(1):
        odd.left += 1
    raise ConnectionResetError


async def garbage(odd: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(b"\x00\x01\x02 this is no HTTP\r\n\r\n" * 10)


async def half_closed(odd: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n[1, 2")
    await writer.drain()
    writer.write_eof()
    await reader.read()
    raise ConnectionResetError


async def wrong(odd: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(ok(b'"no number"'))


async def closing(odd: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    """Promises to keep the connection, and closes it when the next request comes."""
    if len(odd.requests) % 2:
        writer.write(ok())
    else:
        raise ConnectionResetError


async def endless_head(odd: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while not writer.is_closing():
        writer.write(b"x-filler: %b\r\n" % (b"y" * 1000))
        await writer.drain()


async def endless_body(odd: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"1" * 10_000)
        await writer.drain()


async def trailing(odd: Odd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    """One answer too many: it must not be taken for the next request's."""
    writer.write(ok(b"1") + ok(b"666"))
