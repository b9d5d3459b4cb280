"""The sending side of a connection: answers as bytes, back-pressure, and readers that are too slow.

What one turn of the loop writes goes out together at its end: many answers are computed in a row, and then many system
calls made, which costs a tenth less than taking turns (caches), and joins what belongs to one connection.

Invariant: nothing is written after the transport is gone; a streamed answer that announced its length and does not
keep to it ends the connection, since the client could not tell where the next answer begins.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from penstock.http.message import Disconnected, Request, Response
from penstock.http.wire import BODILESS, CHUNKED, LAST_CHUNK, STATUS_LINES, connection_line

if TYPE_CHECKING:
    from penstock.http.server import Server

# A body above this is written apart from its head: copying it would cost more than a second write.
JOINED = 64 << 10

# How far the answer of the running request is.
UNSTARTED, STREAMING, ENDED = 0, 1, 2

_LENGTH = re.compile(rb"(?:^|\n)content-length: (\d+)\r\n")


class Writer(asyncio.Protocol):
    """The half of a connection that is an `Out`."""

    __slots__ = (
        "_chunked",
        "_drained",
        "_ending",
        "_left",
        "_outgoing",
        "_outgoing_bytes",
        "_paused",
        "_request",
        "_server",
        "_stage",
        "_stalled",
        "_transport",
        "_unsent",
        "bodiless",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None  # the one that is being answered by a task
        self._stage = UNSTARTED
        self._chunked = False
        self._outgoing: list[bytes] = []  # written in this turn of the loop
        self._outgoing_bytes = 0
        self._left = 0  # bytes of an announced length that are not written yet
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._unsent = 0
        self._stalled = 0
        self._ending = 0.0  # seconds that the far side has to take the last bytes; 0 while we are not done
        self.bodiless = False

    # Called by the transport.

    def pause_writing(self) -> None:
        self._paused = True
        self._stalled = 0

    def resume_writing(self) -> None:
        self._paused = False
        self._release()

    def _release(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _send(self, data: bytes) -> None:
        outgoing = self._outgoing
        if not outgoing:
            self._server.flush_soon(self)
        outgoing.append(data)
        self._outgoing_bytes += len(data)
        if self._outgoing_bytes > JOINED:
            self.flush()  # a body that never waits would fill the memory before the turn ends

    def flush(self) -> None:
        """Hand to the transport what was written."""
        outgoing, transport = self._outgoing, self._transport
        if outgoing and transport is not None and not transport.is_closing():
            transport.write(outgoing[0] if len(outgoing) == 1 else b"".join(outgoing))
        self._outgoing = []
        self._outgoing_bytes = 0

    # Answers.

    def _whole(self, request: Request, response: Response) -> None:
        """Write a whole answer, and close if it is the last one."""
        transport = self._transport
        if transport is None:
            return
        server, status, body = self._server, response.status, response.body
        size = len(body)
        keep_alive = request.keep_alive and not server.stopping
        if keep_alive and size < JOINED and not (request.http10 or self.bodiless or status in BODILESS):
            self._send(b"%b%b%bcontent-length: %d\r\n\r\n%b" % (STATUS_LINES[status], server.date, response.head, size, body))
            return
        line = connection_line(keep_alive, request.http10)
        if status not in BODILESS:
            line += b"content-length: %d\r\n" % size
        self._send(b"%b%b%b%b\r\n" % (STATUS_LINES[status], server.date, response.head, line))
        if body and not self.bodiless and status not in BODILESS:
            self.flush()
            transport.write(body)
        if not keep_alive:
            self._close()

    def start(self, status: int, head: bytes, data: bytes = b"", *, sized: bool = False) -> Awaitable[None] | None:
        request, server = self._request, self._server
        if self._transport is None or request is None:
            raise Disconnected
        self._stage = STREAMING
        self._left = 0
        if status in BODILESS:
            self.bodiless = True
        elif sized:
            length = _LENGTH.search(head)
            self._left = int(length[1]) if length else 0
        elif request.http10:
            request.keep_alive = False  # the end of the body is the end of the connection
        self._chunked = not (sized or request.http10 or status in BODILESS)
        line = connection_line(request.keep_alive and not server.stopping, request.http10)
        coding = CHUNKED if self._chunked else b""
        self._send(b"%b%b%b%b%b\r\n" % (STATUS_LINES[status], server.date, head, line, coding))
        return self.write(data) if data else None

    def write(self, data: bytes) -> Awaitable[None] | None:
        if self._transport is None:
            raise Disconnected
        if data and not self.bodiless:
            if self._chunked:
                self._send(b"%x\r\n%b\r\n" % (len(data), data))
            else:
                self._left -= len(data)
                self._send(data)
        return self._drain() if self._paused else None

    def end(self, data: bytes = b"") -> Awaitable[None] | None:
        if self._transport is None:
            raise Disconnected
        if self.bodiless:
            self._stage = ENDED
            return None
        if self._chunked:
            self._send(b"%x\r\n%b\r\n%b" % (len(data), data, LAST_CHUNK) if data else LAST_CHUNK)
        elif data:
            self._left -= len(data)
            self._send(data)
        self._stage = ENDED
        return None

    async def _drain(self) -> None:
        if self._paused and self._transport is not None:
            self._drained = self._server.loop.create_future()
            await self._drained

    def _finish(self, request: Request) -> None:
        """After a streamed answer."""
        if self._stage != ENDED:
            raise RuntimeError("a streamed answer stopped before its end")
        if self._left and not request.http10:
            raise RuntimeError(f"a streamed answer was {self._left} bytes from the length that it announced")
        if not request.keep_alive or self._server.stopping:
            self._close()

    # The end.

    def _close(self) -> None:
        """Close once everything is sent."""
        if self._transport is not None and not self._ending:
            self._ending = self._server.limits.stall_timeout
            self.flush()
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._ending = self._server.limits.stall_timeout
            self.flush()
            self._transport.abort()

    def _watch_reader(self, transport: asyncio.Transport) -> None:
        """Cut off a client that takes too little of what is written to it. Called by the sweep."""
        limits, sweep = self._server.limits, self._server.sweep
        unsent = transport.get_write_buffer_size()
        taken, self._unsent = self._unsent - unsent, unsent
        self._stalled = 0 if taken >= limits.stall_rate * sweep.period else self._stalled + 1
        if self._stalled > sweep.ticks(self._ending or limits.stall_timeout):
            transport.abort()
