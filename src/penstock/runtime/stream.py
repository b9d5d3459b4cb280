"""Reading a stream: pulled straight from the body where it runs on the loop, from a bounded buffer where it does not.

There is no pump task: the reader drives an inline body itself, so a reader that stops reading stops the body.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from penstock.context import Frame, frame_var
from penstock.core.request import RUNNING, Request
from penstock.runtime.items import advanced

if TYPE_CHECKING:
    from penstock.runtime.call import BoundCall


def read(call: BoundCall) -> AsyncIterator[Any]:
    """The items of a streaming call."""
    return _pull(call) if call.binding.direct else _receive(call)


async def only(call: BoundCall) -> AsyncIterator[Any]:
    """The answer of a call that does not stream, as its one item."""
    yield await call


def _hold(call: BoundCall) -> list[Request]:
    """An open stream's lease is held by who reads it: what the reader calls meanwhile must not wait for it.

    A reader that streams in its turn is stopped by its own reader, who then holds all of it.
    """
    nodes, holders = call.binding.station.nodes, []
    while nodes and call.frame is not None and call.frame.request is not None:
        reader = call.frame.request
        if reader.station is None:
            break  # a group of calls, which holds nothing
        reader.held = (*reader.held, *nodes)
        holders.append(reader)
        if reader.item is None or not reader.item.binding.streams:
            break
        call = reader.item
    return holders


def _let_go(call: BoundCall, holders: list[Request]) -> None:
    for reader in holders:
        held = list(reader.held)
        for node in call.binding.station.nodes:
            held.remove(node)
        reader.held = tuple(held)


async def _pull(call: BoundCall) -> AsyncGenerator[Any, None]:
    binding, request = call.binding, call.request
    binding.submit(call)
    if request.state != RUNNING:
        await call.turn()
    frame = Frame(call.budget, request, binding.runtime)
    clock = binding.runtime.clock
    failure: BaseException | None = None
    body: AsyncGenerator[Any, None] | None = None
    runner = asyncio.current_task(binding.runtime.loop)
    holders = _hold(call)
    try:
        body = binding.target(*call.args, **call.kwargs)
        step = body.__anext__
        while call.error is None:
            token = frame_var.set(frame)
            call.runner = runner
            try:
                item = await step()
            finally:
                call.runner = None
                frame_var.reset(token)
            call.items += 1
            if request.first is None or binding.station.paced:
                advanced(binding, request)
            request.progress = math.inf  # from here on the reader is what the stream waits for
            if call.error is not None:
                break
            yield item
            request.progress = clock()
            runner = asyncio.current_task(binding.runtime.loop)
    except StopAsyncIteration:
        pass
    except BaseException as error:
        failure = error
        if call.error is not None and isinstance(error, asyncio.CancelledError) and runner is not None:
            runner.uncancel()
            failure = None
    try:
        try:
            if body is not None and (failure is not None or call.error is not None):
                await body.aclose()
        finally:
            call.runner = None
            _let_go(call, holders)
            binding.stopped(call, failure)
        if isinstance(failure, GeneratorExit):
            return  # who has left is told nothing
        if call.error is not None:
            raise call.ordered()
        if failure is not None:
            raise failure
    finally:
        del failure, runner  # the traceback of the one, and the other's outcome, hold this frame


class Inbox:
    """Items that an executor has produced and the reader has not taken; bounded by the executor's window."""

    __slots__ = ("closed", "error", "items", "waiter")

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self.closed = False
        self.error: BaseException | None = None
        self.waiter: asyncio.Future[None] | None = None

    def put(self, items: Sequence[Any]) -> None:
        self.items.extend(items)
        self._wake()

    def put_one(self, item: Any) -> None:
        self.items.append(item)
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: BaseException) -> None:
        """The stream was ended from outside: what is buffered is dropped."""
        self.items.clear()
        self.close(error)

    def close(self, error: BaseException | None) -> None:
        if not self.closed:
            self.closed = True
            self.error = error
            self._wake()

    def end(self) -> BaseException:
        """The error, given away: its traceback will hold frames that hold this inbox."""
        error, self.error = self.error, None
        assert error is not None
        return error

    def _wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


async def _receive(call: BoundCall) -> AsyncGenerator[Any, None]:
    binding, request = call.binding, call.request
    call.context = copy_context()
    inbox = call.stream = Inbox()
    loop, clock = binding.runtime.loop, binding.runtime.clock
    binding.submit(call)
    holders = _hold(call)
    try:
        while True:
            while inbox.items:
                item = inbox.items.popleft()
                call.items += 1
                request.progress = math.inf
                yield item
                request.progress = clock()
                if request.work is not None:
                    binding.resume(request.work)
            if inbox.closed:
                break
            inbox.waiter = loop.create_future()
            await inbox.waiter
            inbox.waiter = None
    finally:
        _let_go(call, holders)
        if not request.outcome:
            binding.abandon(call)
    if inbox.error is not None:
        raise inbox.end()
