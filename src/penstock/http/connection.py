"""One client connection: requests answered in order, each in at most one task, under the limits.

The end of the client's sending side counts as its leaving, as in uvicorn and most servers: in TCP a client that has
closed and one that will still read look the same, and work for a caller that has gone must stop. (A client that half
closes, as `nc -N` does, therefore gets no answer to what is still running.)

Invariants: at most one request is being answered, and `_request` is set exactly while that takes a task; after
`connection_lost` the task has been cancelled; while more is ready than is read ahead, nothing is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from penstock.http.message import Answer, Disconnected, Request, Response
from penstock.http.problems import Fault
from penstock.http.reader import HEAD, IDLE, Reader
from penstock.http.unread import unread
from penstock.http.wire import CONTINUE, STATUS_LINES
from penstock.http.writer import ENDED, UNSTARTED, Writer

if TYPE_CHECKING:
    from penstock.http.server import Server

log = logging.getLogger("penstock.http")

# What a connection without a running request waits for, so that the wait is dated from its beginning.
NOTHING, NEXT, REST = 0, 1, 2


class Connection(Writer):
    """An asyncio protocol, and the `Out` of a streamed answer."""

    __slots__ = ("_held", "_lain", "_reader", "_served", "_since", "_task", "_waiting")

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self._reader = Reader(server.limits, server.bodies, server.heads)
        self._task: asyncio.Task[None] | None = None
        self._held = b""  # read, and not parsed, because enough requests are ready
        self._since = server.sweep.tick
        self._waiting = NEXT
        self._served = False
        self._lain = 0.0  # seconds in which its first request lay unread

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        lain = unread(transport)
        if lain is None:
            self._server.left += 1
            self._abort()
            return
        self._lain = lain
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self._reader.client = (str(peer[0]), int(peer[1]))
        refusal = self._server.opened(self)
        if refusal is not None:
            self._refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.lookout.glance()
        self._transport = None
        self._server.closed(self)
        self._reader.close()
        task, self._task = self._task, None  # where it has not begun, only letting go of it ends what it would await
        if task is not None:
            task.cancel()
        self._release()

    def eof_received(self) -> bool:
        self.flush()
        return False

    def data_received(self, data: bytes) -> None:
        self._server.lookout.glance()
        if self._ending:
            return
        reader = self._reader
        self._held = self._held + data if self._held else reader.feed(data)
        if self._request is None:
            self._advance()
        if (self._held or len(reader.ready) >= self._server.limits.pipeline) and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
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
            self._send(CONTINUE)
        waiting = REST if reader.phase else NEXT
        if waiting != self._waiting:
            self._waiting = waiting
            self._since = self._server.sweep.tick
        if not transport.is_reading():
            transport.resume_reading()

    def _begin(self, request: Request) -> None:
        self._waiting = NOTHING
        self._served = True
        request.waited, self._lain = self._lain, 0.0
        self.bodiless = request.method == "HEAD"
        answer: Answer | Coroutine[Any, Any, Answer]
        try:
            answer = self._server.handler(request)
        except Exception as error:
            log.exception("the handler failed on %s %s", request.method, request.path)
            answer = self._server.refuse(error, request.headers)
        if isinstance(answer, Response):
            self._whole(request, answer)
        else:
            self._request = request
            self._stage = UNSTARTED
            self._task = self._server.loop.create_task(self._serve(request, answer))

    async def _serve(self, request: Request, answer: Any) -> None:
        try:
            if isinstance(answer, CoroutineType):
                answer = await answer
            if isinstance(answer, Response):
                self._whole(request, answer)
            else:
                await answer.run(self)
                self._finish(request)
        except Disconnected:
            self._abort()
        except Exception as error:
            log.exception("the handler failed on %s %s", request.method, request.path)
            if self._stage == UNSTARTED:
                self._whole(request, self._server.refuse(error, request.headers))
            elif self._stage == ENDED and not self._left:
                self._finish(request)  # what came after the answer failed, as where Starlette raises again
            else:
                self._abort()  # a body that breaks off is the only way left to say it
        except GeneratorExit:  # the loop is over
            raise
        except BaseException:
            self._abort()  # where it was not the client that left, it must not wait for ever
            raise
        finally:
            self._request = self._task = None
            self._advance()

    # The end.

    def _refuse(self, fault: Fault) -> None:
        """Answer, end our side, and read on for a while: closing with unread bytes would reset what we have said."""
        transport = self._transport
        if transport is None or self._ending:
            return
        answer = self._server.refuse(fault, self._reader.headers)
        line = b"%bconnection: close\r\ncontent-length: %d\r\n\r\n" % (self._server.date, len(answer.body))
        self._send(b"%b%b%b%b" % (STATUS_LINES[answer.status], answer.head, line, answer.body))
        self._ending = self._server.limits.linger
        self._held = b""
        self._reader.close()
        self.flush()
        if transport.can_write_eof():
            transport.write_eof()
        if not transport.is_reading():
            transport.resume_reading()

    @property
    def idle(self) -> bool:
        """Whether no request is being received or answered here."""
        return self._request is None and self._reader.phase == IDLE and not self._paused

    def stop(self, now: bool = False) -> None:
        """The server stops: leave at once if nothing is under way here, or in any case if `now`."""
        if now:
            if self._task is not None:
                self._task.cancel()
            self._abort()
        elif self.idle:
            self._close()

    def swept(self, tick: int) -> None:
        """Called once a period by the server's sweep."""
        if self._transport is None:
            return
        if self._paused or self._ending:
            self._watch_reader(self._transport)
        elif self._request is None:
            self._watch_sender(tick)

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
