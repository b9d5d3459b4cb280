"""Calls of other services from a body in a child: carried to the parent, which runs them as the body's own, and back.

The parent knows whose request is running here, so budget, tenant and place in line are inherited there. Any thread may call.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from .outcome import revive
from .wire import CALL, DROP, Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .link import Link


class Calls:
    """The calls that this child waits for. `whose` tells the running unit and the request in it."""

    def __init__(self, link: Link, whose: Callable[[], tuple[int, int]]) -> None:
        self._link = link
        self._whose = whose
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        link.on_answer = self._answered

    def begin(self, name: str, args: Any, kwargs: Any) -> Future[Any]:
        """Call a service of the parent's; the future has its answer."""
        future: Future[Any] = Future()
        number = next(self._ids)
        self._waiting[number] = future
        try:
            self._link.send(CALL, number, (*self._whose(), name, args, kwargs, within()))
        except BaseException:
            del self._waiting[number]
            raise
        future.add_done_callback(lambda done: self._drop(number) if done.cancelled() else None)
        return future

    def _drop(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None:
            self._link.send(DROP, number, None)

    def _answered(self, number: int, frame: Frame) -> None:
        future = self._waiting.pop(number, None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        try:
            result, failed = frame.load()
        except Exception as error:
            future.set_exception(error)
            return
        if failed is None:
            future.set_result(result)
        else:
            future.set_exception(revive(failed) or RuntimeError(failed[2]))


class ChildCall:
    """One call, as its caller in a child holds it; lazy, as every call."""

    def __init__(self, calls: Calls, name: str, args: Any, kwargs: Any) -> None:
        self._calls = calls
        self._name = name
        self._arguments = args, kwargs
        self._future: asyncio.Future[Any] | None = None

    def start(self) -> ChildCall:
        """Begin now; await it later."""
        if self._future is None:
            self._future = asyncio.wrap_future(self._calls.begin(self._name, *self._arguments))
        return self

    def __await__(self) -> Generator[Any, Any, Any]:
        self.start()
        assert self._future is not None
        return self._future.__await__()

    def __aiter__(self) -> Any:
        raise TypeError(f"{self._name}: a stream cannot be read in a child process; read it where the runtime is")

    def cancel(self) -> None:
        """The answer is not wanted any more."""
        if self._future is not None:
            self._future.cancel()


class ChildRuntime:
    """What services find as their runtime in a child."""

    def __init__(self, calls: Calls, loop: asyncio.AbstractEventLoop | None) -> None:
        self._calls = calls
        self.loop = loop
        self.clock = time.monotonic

    def call(self, service: Any, args: Any, kwargs: Any) -> ChildCall:
        """`service(...)`, to be awaited."""
        return ChildCall(self._calls, service.name, args, kwargs)

    def submit(self, service: Any, args: Any, kwargs: Any) -> Future[Any]:
        """`service.submit(...)`, for code that is not async."""
        return self._calls.begin(service.name, args, kwargs)


def within() -> float | None:
    """Seconds left of the budget that the body itself has set, if it did."""
    context = sys.modules.get("penstock.context")
    if context is None or context.frame_var.get() is None:
        return None
    now = time.monotonic()
    deadline = context.tighten(context.frame_var.get(), None, now).deadline
    return None if deadline is None else max(1e-6, deadline - now)
