"""One client connection: requests answered in order, each in at most one task, under the limits.

The end of the client's sending side counts as its leaving, as in uvicorn and most servers: in TCP a client that has
closed and one that will still read look the same, and work for a caller that has gone must stop. (A client that half
closes, as `nc -N` does, therefore gets no answer to what is still running.)

Invariants: at most one request is being answered, and `_request` is set exactly while that takes a task; after
`connection_lost` nothing is written and the task has been cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from .message import Answer, Request, Response
from .problems import Fault, problem_response
from .reader import HEAD, IDLE, Reader
from .wire import BODILESS, CHUNKED, CONTINUE, LAST_CHUNK, STATUS_LINES, connection_line

if TYPE_CHECKING:
    from .server import Server

log = logging.getLogger("penstock.http")

# A body above this is written apart from its head: copying it would cost more than a second write.
JOINED = 64 << 10

# What a connection without a running request waits for, so that the wait is dated from its beginning.
NOTHING, NEXT, REST = 0, 1, 2

# How far the answer of the running request is.
UNSTARTED, STREAMING, ENDED = 0, 1, 2


class Connection(asyncio.Protocol):
    """An asyncio protocol, and the `Out` of a streamed answer."""

    __slots__ = (
        "_chunked",
        "_drained",
        "_ending",
        "_held",
        "_paused",
        "_reader",
        "_request",
        "_served",
        "_server",
        "_since",
        "_stage",
        "_stalled",
        "_task",
        "_transport",
        "_unsent",
        "_waiting",
        "bodiless",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._reader = Reader(server.limits, server.bodies)
        self._request: Request | None = None
        self._task: asyncio.Task[None] | None = None
        self._held = b""
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._since = server.sweep.tick
        self._waiting = NEXT
        self._served = False
        self._unsent = 0
        self._stalled = 0
        self._ending = 0.0  # seconds that the far side has left to take the last bytes, once we are done
        self._stage = UNSTARTED
        self._chunked = False
        self.bodiless = False

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self._reader.client = (str(peer[0]), int(peer[1]))
        refusal = self._server.opened(self)
        if refusal is not None:
            self._refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.closed(self)
        self._reader.close()
        if self._task is not None:
            self._task.cancel()
        self._release()

    def eof_received(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        if self._held:
            self._held += data
            return
        reader = self._reader
        self._held = reader.feed(data)
        if self._request is None:
            self._advance()
        elif self._held or len(reader.ready) >= self._server.limits.pipeline:
            self._transport.pause_reading()  # type: ignore[union-attr]

    def pause_writing(self) -> None:
        self._paused = True
        self._stalled = 0

    def resume_writing(self) -> None:
        self._paused = False
        self._release()
        if self._request is None:
            self._advance()

    # Requests, one at a time.

    def _advance(self) -> None:
        """Answer what is ready, until an answer needs a task or its reader is slow."""
        reader = self._reader
        while self._transport is not None and not self._paused and not self._ending:
            if reader.ready:
                self._begin(reader.ready.popleft())
                if self._request is not None:
                    return
            elif self._held:
                self._held = reader.feed(self._held)
            else:
                self._await_more(self._transport)
                return

    def _await_more(self, transport: asyncio.Transport) -> None:
        reader = self._reader
        if reader.fault is not None:
            self._refuse(reader.fault)
            return
        if reader.ended or (self._server.stopping and reader.phase == IDLE):
            self._close()
            return
        if reader.expects:
            reader.expects = False
            transport.write(CONTINUE)
        waiting = REST if reader.phase else NEXT
        if waiting != self._waiting:
            self._waiting = waiting
            self._since = self._server.sweep.tick
        if not transport.is_reading():
            transport.resume_reading()

    def _begin(self, request: Request) -> None:
        self._waiting = NOTHING
        self._served = True
        self.bodiless = request.method == "HEAD"
        answer: Answer | Coroutine[Any, Any, Answer]
        try:
            answer = self._server.handler(request)
        except Exception as error:
            log.exception("the handler failed on %s %s", request.method, request.path)
            answer = problem_response(error)
        if type(answer) is Response:
            self._whole(request, answer)
        else:
            self._request = request
            self._stage = UNSTARTED
            self._task = self._server.loop.create_task(self._serve(request, answer))

    async def _serve(self, request: Request, answer: Answer | Coroutine[Any, Any, Answer]) -> None:
        try:
            got = await answer if isinstance(answer, CoroutineType) else answer
            if type(got) is Response:
                self._whole(request, got)
            else:
                await got.run(self)
                if self._stage != ENDED:
                    raise RuntimeError("a streamed answer stopped before its end")
                self._finish(request)
        except ConnectionResetError:
            self._abort()
        except Exception as error:
            log.exception("the handler failed on %s %s", request.method, request.path)
            if self._stage == UNSTARTED:
                self._whole(request, problem_response(error))
            else:
                self._abort()  # a body that breaks off is the only way left to say it
        finally:
            self._request = self._task = None
            self._advance()

    # Answers.

    def _whole(self, request: Request, response: Response) -> None:
        transport = self._transport
        if transport is None:
            return
        server, status, body = self._server, response.status, response.body
        if request.keep_alive and not request.http10 and not server.stopping and not self.bodiless and len(body) < JOINED:
            transport.write(
                b"%b%b%bcontent-length: %d\r\n\r\n%b"
                % (STATUS_LINES[status], server.date, response.head, len(body), body)
                if status not in BODILESS
                else b"%b%b%b\r\n" % (STATUS_LINES[status], server.date, response.head)
            )
            return
        keep_alive = request.keep_alive and not server.stopping
        line = connection_line(keep_alive, request.http10)
        size = b"" if status in BODILESS else b"content-length: %d\r\n" % len(body)
        transport.write(b"%b%b%b%b%b\r\n" % (STATUS_LINES[status], server.date, response.head, line, size))
        if body and not self.bodiless and size:
            transport.write(body)
        if not keep_alive:
            self._close()

    def start(self, status: int, head: bytes, data: bytes = b"", *, sized: bool = False) -> Awaitable[None] | None:
        transport, request, server = self._transport, self._request, self._server
        if transport is None or request is None:
            raise ConnectionResetError
        self._stage = STREAMING
        self._chunked = not sized and not request.http10 and status not in BODILESS
        if request.http10 and not sized:
            request.keep_alive = False  # the end of the body is the end of the connection
        line = connection_line(request.keep_alive and not server.stopping, request.http10)
        coding = CHUNKED if self._chunked else b""
        transport.write(b"%b%b%b%b%b\r\n" % (STATUS_LINES[status], server.date, head, line, coding))
        return self.write(data) if data else None

    def write(self, data: bytes) -> Awaitable[None] | None:
        transport = self._transport
        if transport is None:
            raise ConnectionResetError
        if data and not self.bodiless:
            transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return self._drain() if self._paused else None

    def end(self, data: bytes = b"") -> Awaitable[None] | None:
        transport = self._transport
        if transport is None:
            raise ConnectionResetError
        self._stage = ENDED
        if self.bodiless:
            return None
        if self._chunked:
            data = b"%x\r\n%b\r\n%b" % (len(data), data, LAST_CHUNK) if data else LAST_CHUNK
        if data:
            transport.write(data)
        return None

    async def _drain(self) -> None:
        if self._paused and self._transport is not None:
            self._drained = self._server.loop.create_future()
            await self._drained

    def _release(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # The end.

    def _finish(self, request: Request) -> None:
        if not request.keep_alive or self._server.stopping:
            self._close()

    def _close(self) -> None:
        if self._transport is not None and not self._ending:
            self._ending = self._server.limits.stall_timeout
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _refuse(self, fault: Fault) -> None:
        """Answer, end our side, and read on for a while: closing with unread bytes would reset what we have said."""
        transport = self._transport
        if transport is None or self._ending:
            return
        answer = problem_response(fault)
        line = b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(answer.body)
        transport.write(b"%b%b%b%b%b" % (STATUS_LINES[answer.status], self._server.date, answer.head, line, answer.body))
        self._ending = self._server.limits.linger
        self._held = b""
        self._reader.close()
        if transport.can_write_eof():
            transport.write_eof()
        if not transport.is_reading():
            transport.resume_reading()

    def stop(self, now: bool = False) -> None:
        """The server stops: leave at once if nothing is under way here, or in any case if `now`."""
        if now:
            if self._task is not None:
                self._task.cancel()
            self._abort()
        elif self._request is None and self._reader.phase == IDLE and not self._paused:
            self._close()

    # Time, from the server's sweep.

    def swept(self, tick: int) -> None:
        if self._transport is None:
            return
        if self._paused or self._ending:
            self._watch_reader(self._transport)
        elif self._request is None:
            self._watch_sender(tick)

    def _watch_reader(self, transport: asyncio.Transport) -> None:
        """Cut off a client that takes too little of what is written to it."""
        limits, sweep = self._server.limits, self._server.sweep
        unsent = transport.get_write_buffer_size()
        taken, self._unsent = self._unsent - unsent, unsent
        self._stalled = 0 if taken >= limits.stall_rate * sweep.period else self._stalled + 1
        if self._stalled > sweep.ticks(self._ending or limits.stall_timeout):
            transport.abort()

    def _watch_sender(self, tick: int) -> None:
        limits, reader, ticks = self._server.limits, self._reader, self._server.sweep.ticks
        age = tick - self._since
        if reader.phase == IDLE:
            if age > ticks(limits.idle_timeout if self._served else limits.head_timeout):
                self._close()
        elif reader.phase == HEAD:
            if age > ticks(limits.head_timeout):
                self._refuse(Fault(408, f"The header section took longer than {limits.head_timeout:g} s."))
        elif age > ticks(limits.body_timeout + reader.received / limits.body_rate):
            self._refuse(Fault(408, f"The body came slower than {limits.body_rate:g} bytes/s."))
