"""HTTP/1.1 to one server: connections that are kept, on httptools and without a task a request.

An `Exchange` is one request and what becomes of its answer. It hears `head`, `body` and, once, `ended` or `lost`. What
a server may make us hold is bounded: its head here, its body by the exchange. An idle connection that is older than
most servers keep one is not used again; one that the server closed before a byte of the answer had come is `stale`, and
whoever knows that the request is safe may send it again on a new one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from penstock.executors.remote_place import Address

_FRESH = 4.0  # seconds an idle connection is used again; uvicorn and others close them after five
_HEAD = 64 << 10  # bytes


class Exchange(Protocol):
    """One request: its bytes, and who hears of the answer."""

    data: bytes
    connection: Connection | None

    def head(self, status: int, headers: dict[bytes, bytes]) -> None: ...

    def body(self, data: bytes) -> None: ...

    def ended(self) -> None: ...

    def lost(self, why: str, stale: bool, sent: bool = True) -> None: ...


class Connection(asyncio.Protocol):
    """Carries one exchange at a time."""

    __slots__ = (
        "done",
        "exchange",
        "extra",
        "headers",
        "heard",
        "idle_since",
        "keeps",
        "parser",
        "server",
        "sized",
        "still",
        "transport",
        "used",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport
        self.parser = httptools.HttpResponseParser(self)
        self.exchange: Exchange | None = None
        self.done: Exchange | None = None  # its answer is complete, and it has yet to hear of it
        self.keeps = False
        self.still = False
        self.extra = False  # something came after the answer
        self.headers: dict[bytes, bytes] = {}
        self.heard = 0  # bytes of the answer's head
        self.sized = False  # the answer says itself where it ends
        self.used = 0  # exchanges so far
        self.idle_since = 0.0

    def send(self, exchange: Exchange) -> None:
        """Begin an exchange."""
        self.exchange = exchange
        exchange.connection = self
        self.heard = 0
        self.used += 1
        self.transport.write(exchange.data)

    def stand_still(self, still: bool) -> None:
        """Read no further, or go on."""
        if still != self.still:
            self.still = still
            if still:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def abort(self) -> None:
        """Close now, whatever is under way; its exchange hears nothing more."""
        self.exchange = None
        self.transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.connections[self] = None

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.transport.abort()  # an answer that nobody asked for
            return
        if self.heard >= 0:
            self.heard += len(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.extra = True
            if self.done is None:
                self._break("what it answers is not HTTP")
        done, self.done = self.done, None
        if done is not None:
            if self.keeps and not self.extra and not self.transport.is_closing():
                self.server.keep(self)
            else:
                self.transport.close()
            done.ended()
        elif self.heard > _HEAD and self.exchange is not None:
            self._break(f"the head of its answer has more than {_HEAD >> 10} KiB")

    def _break(self, why: str) -> None:
        exchange = self.exchange
        self.abort()
        if exchange is not None:
            exchange.lost(why, False)

    def connection_lost(self, error: Exception | None) -> None:
        self.server.forget(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if self.heard < 0 and not self.sized and error is None:
            exchange.ended()  # it ends where the connection does
        elif self.heard:
            exchange.lost("it broke off in the middle of its answer", False)
        else:
            exchange.lost("it closed the connection without an answer", self.used > 1)

    # httptools

    def on_message_begin(self) -> None:
        self.extra = self.done is not None
        self.headers = {}
        self.sized = False

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers[name] = value
        if name in (b"content-length", b"transfer-encoding"):
            self.sized = True

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        if status >= 200 and self.exchange is not None:
            self.heard = -1
            self.exchange.head(status, self.headers)

    def on_body(self, data: bytes) -> None:
        if self.exchange is not None:
            self.exchange.body(data)

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() < 200:
            return  # 100 Continue, 103 Early Hints: the answer is still to come
        if self.exchange is not None:
            self.exchange.connection = None
            self.done, self.exchange = self.exchange, None
            self.keeps = self.parser.should_keep_alive()


class Server:
    """One server and its connections."""

    def __init__(
        self,
        address: Address,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        timeout: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address = address
        self.loop = loop
        self.clock = clock
        self.timeout = timeout
        self.tls = (tls or ssl.create_default_context()) if address.secure else None
        self.connections: dict[Connection, None] = {}
        self.idle: list[Connection] = []  # the last one is the warmest
        self.dialing: dict[Exchange, asyncio.Task[None]] = {}

    def begin(self, exchange: Exchange, fresh: bool = False) -> None:
        """Send it on an idle connection, or on a new one."""
        while self.idle and not fresh:
            connection = self.idle.pop()
            if connection.transport.is_closing():
                continue
            if self.clock() - connection.idle_since > _FRESH:
                connection.transport.close()
                continue
            connection.send(exchange)
            return
        task = self.dialing[exchange] = self.loop.create_task(self._dial(exchange))
        task.add_done_callback(lambda _: self.dialing.pop(exchange, None))

    async def _dial(self, exchange: Exchange) -> None:
        where = self.address
        try:
            async with asyncio.timeout(self.timeout):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self),
                    where.host,
                    where.port,
                    ssl=self.tls,
                    server_hostname=where.host if self.tls else None,
                )
        except TimeoutError:
            exchange.lost(f"no connection within {self.timeout:g} s", False, sent=False)
        except (OSError, ssl.SSLError) as error:
            exchange.lost(f"it cannot be reached: {error.strerror or error}", False, sent=False)
        else:
            connection.send(exchange)

    def drop(self, exchange: Exchange) -> None:
        """Nobody waits for this exchange any more: close what carries it. It hears nothing more."""
        dialing = self.dialing.pop(exchange, None)
        if dialing is not None:
            dialing.cancel()
        if exchange.connection is not None:
            exchange.connection.abort()
            exchange.connection = None

    def keep(self, connection: Connection) -> None:
        """The exchange is over, and the server keeps the connection open."""
        connection.idle_since = self.clock()
        connection.stand_still(False)
        self.idle.append(connection)

    def forget(self, connection: Connection) -> None:
        self.connections.pop(connection, None)
        if connection in self.idle:
            self.idle.remove(connection)

    def close(self) -> None:
        """Close every connection."""
        for task in list(self.dialing.values()):
            task.cancel()
        for connection in list(self.connections):
            connection.abort()
