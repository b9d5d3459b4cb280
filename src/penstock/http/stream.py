"""Streams over HTTP: server-sent events and NDJSON, written by the task that pulls the body.

The head goes out with the first item, so that a stream which fails before it is an ordinary problem response. One
write an item, no queue between, and back-pressure by awaiting the transport only when it is full. Idle streams get
a comment (or an empty line) every 15 seconds from one shared sweep, so that nothing on the way takes them for dead.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from penstock.codec import encode_json
from penstock.errors import PenstockError
from penstock.http.message import Disconnected, Out, Response
from penstock.http.problems import problem, problem_response

if TYPE_CHECKING:
    from penstock.http.endpoint import Exchange
    from penstock.http.handler import Handler

SSE_HEAD = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
NDJSON_HEAD = b"content-type: application/x-ndjson\r\ncache-control: no-cache\r\n"
RETRY = b"retry: 3000\n\n"
PING = b":\n\n"  # a comment, which EventSource skips
BLANK = b"\n"  # an empty line, which readers of NDJSON skip
# A `data` line without a colon is an empty data field, so EventSource dispatches the event.
END = b"event: end\ndata\n\n"
HEARTBEAT = 15.0  # seconds


def leaving() -> bool:
    """Whether the current task was cancelled from outside: the client has left, or the server stops.

    The caller must not hold the task itself: a cancelled one holds the frames that it was cancelled in.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class Heartbeats:
    """Writes a sign of life to streams that have been silent for a heartbeat; one timer for all of them."""

    def __init__(self, interval: float = HEARTBEAT) -> None:
        self.interval = interval
        self.streams: dict[Writing, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: Writing) -> None:
        self.streams[stream] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval / 2, self._turn)

    def _turn(self) -> None:
        self._timer = None
        for stream in list(self.streams):
            stream.beat()
        if self.streams:
            self._timer = asyncio.get_running_loop().call_later(self.interval / 2, self._turn)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Writing(ABC):
    """A streamed answer (`Streamed`) in the writing: what all of them share. `name` is what is being called."""

    __slots__ = ("handler", "out", "quiet", "started", "waiting")
    name: str
    sign = PING  # of life

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.out: Out | None = None
        self.started = False
        self.quiet = 0
        self.waiting: Awaitable[None] | None = None
        """What the last write gave to await: while it is there, nothing else may be written."""

    @abstractmethod
    async def pull(self, out: Out) -> None:
        """Read all items, and write them."""

    @abstractmethod
    def head(self) -> bytes:
        """The header lines, asked for when the first item is there."""

    @abstractmethod
    def end(self) -> bytes:
        """What closes the stream."""

    @abstractmethod
    def broken(self, error: BaseException) -> bytes:
        """What closes a stream that failed after its start."""

    @abstractmethod
    def refusal(self, error: BaseException) -> Response:
        """The answer if it failed before."""

    def unwanted(self) -> None:
        """Only the head is asked for."""

    async def run(self, out: Out) -> None:
        self.out = out
        if out.bodiless:
            self.unwanted()
            await self._end(b"")
            return
        heartbeats = self.handler.heartbeats
        heartbeats.add(self)
        try:
            await self.handler.pacer.turn()
            await self.pull(out)
        except Disconnected:
            raise
        except asyncio.CancelledError:
            if leaving():
                raise
            await self._fail(PenstockError(f"{self.name} cancelled its own call"))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            await self._fail(error)
        else:
            await self._end(self.end())
        finally:
            heartbeats.streams.pop(self, None)
            if isinstance(self.waiting, asyncio.Future):
                self.waiting.cancel()  # a heartbeat's

    def send(self, data: bytes, out: Out) -> Awaitable[None] | None:
        """Write; gives what to await before the next one, while the reader is behind."""
        if self.waiting is not None:
            return self._send_after(data, out)  # a heartbeat's write
        waiting = out.write(data) if self.started else self._start(data)
        self.quiet = 0
        if waiting is None:
            return None
        self.waiting = waiting
        return self._settle()

    async def _send_after(self, data: bytes, out: Out) -> None:
        await self._settle()
        waiting = self.send(data, out)
        if waiting is not None:
            await waiting

    async def _settle(self) -> None:
        """Await the last write. It stays in `waiting` meanwhile, so that no heartbeat comes between."""
        if self.waiting is not None:
            try:
                await self.waiting
            finally:
                self.waiting = None

    def _start(self, data: bytes) -> Awaitable[None] | None:
        assert self.out is not None
        self.started = True
        return self.out.start(200, self.head(), data)

    async def _end(self, data: bytes) -> None:
        assert self.out is not None
        await self._settle()
        if not self.started:
            self.waiting = self._start(b"")
            await self._settle()
        self.waiting = self.out.end(data)
        await self._settle()

    async def _fail(self, error: BaseException) -> None:
        assert self.out is not None
        if self.started:
            await self._end(self.broken(error))
            return
        answer = self.refusal(error)
        length = b"content-length: %d\r\n" % len(answer.body)
        self.started = True
        self.waiting = self.out.start(answer.status, answer.head + length, answer.body, sized=True)
        await self._end(b"")

    def beat(self) -> None:
        """Half an interval has passed; two silent ones make a heartbeat."""
        self.quiet += 1
        if isinstance(self.waiting, asyncio.Future) and self.waiting.done():
            self.waiting = None
        if self.quiet < 2 or self.out is None or self.waiting is not None:
            return
        self.quiet = 0
        try:
            waiting = self.out.write(self.sign) if self.started else self._start(self.sign)
        except Disconnected:
            return
        if waiting is not None:
            self.waiting = asyncio.ensure_future(waiting)


class EventStream(Writing):
    """The items of one call: as events if `events`, else as lines of JSON."""

    __slots__ = ("events", "exchange", "name", "sign")

    def __init__(self, exchange: Exchange, events: bool) -> None:
        super().__init__(exchange.endpoint.handler)
        self.exchange = exchange
        self.events = events
        self.name = exchange.endpoint.service.name
        self.sign = PING if events else BLANK

    async def pull(self, out: Out) -> None:
        count, events = 0, self.events
        async with aclosing(self.exchange.call.__aiter__()) as items:  # type: ignore[type-var]
            async for item in items:
                data = b"id: %d\ndata: %b\n\n" % (count, encode_json(item)) if events else encode_json(item) + b"\n"
                count += 1
                waiting = self.send(data, out)
                if waiting is not None:
                    await waiting

    def _start(self, data: bytes) -> Awaitable[None] | None:
        return super()._start(RETRY + data if self.events else data)

    def head(self) -> bytes:
        return self.exchange.head() + (SSE_HEAD if self.events else NDJSON_HEAD)

    def end(self) -> bytes:
        return END if self.events else b""

    def broken(self, error: BaseException) -> bytes:
        exchange = self.exchange
        exchange.report(error)
        body = msgspec.json.encode(problem(error, exchange.call.id, debug=exchange.debug))
        return b"event: error\ndata: %b\n\n" % body if self.events else b'{"error":%b}\n' % body

    def refusal(self, error: BaseException) -> Response:
        exchange = self.exchange
        exchange.report(error)
        return problem_response(error, exchange.call.id, head=exchange.head(), debug=exchange.debug)

    def unwanted(self) -> None:
        call = self.exchange.call
        call.cancel()
        runtime = self.handler.runtime
        line = (call.id, self.name, call.budget.tenant, "ok", "", runtime.clock(), 0.0, 0.0, 0.0, 0.0, 0, "", -1, 0, "")
        runtime.log.append(line)
