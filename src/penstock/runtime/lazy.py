"""A future that sleeps until somebody wants its outcome.

So a call can stand wherever asyncio takes a future: `gather`, `wait`, `as_completed` and `wait_for` would wrap any
other awaitable in a task, which costs more than most calls do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from threading import get_ident
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from penstock.runtime.binding import Binding

_add_done_callback = asyncio.Future.add_done_callback
_BLOCKING: Any = vars(asyncio.Future)["_asyncio_future_blocking"]


class LazyFuture(asyncio.Future[Any]):
    """`start()` makes it a future like any other; before, it is only the promise of one."""

    __slots__ = ("begun", "binding")

    begun: bool  # by start()
    binding: Binding
    start: Callable[[], object]  # the subclass's: begins, and calls `asyncio.Future.__init__`
    __iter__ = None  # type: ignore[assignment]  # a future's is its `__await__`; a call is no plain iterable

    @property
    def _asyncio_future_blocking(self) -> Any:
        """None, which is to say no future but any awaitable, on another thread than the runtime's."""
        return _BLOCKING.__get__(self) if get_ident() == self.binding.runtime.thread else None

    @_asyncio_future_blocking.setter
    def _asyncio_future_blocking(self, value: bool) -> None:
        _BLOCKING.__set__(self, value)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self.binding.runtime.loop

    def add_done_callback(self, function: Callable[[Self], object], /, *, context: Context | None = None) -> None:
        """`function(call)` on the loop when the call has ended. Starts the call."""
        if not self.begun:
            self.start()
        if context is None and getattr(function, "__module__", "") == "asyncio.tasks":
            context = self.binding.runtime.tasks.context  # `gather` and its like only count: one context will do for all
        if context is None:
            _add_done_callback(self, function)  # in that of who adds it
        else:
            _add_done_callback(self, function, context=context)

    def on_success(self, callback: Callable[[Any], object]) -> Self:
        """`callback(answer)` on the loop when the answer is there. Starts the call."""
        return self._when_done(lambda call: None if _failed(call) is not None else callback(call.result()))

    def on_error(self, callback: Callable[[BaseException], object]) -> Self:
        """`callback(error)` on the loop when the call failed or was cancelled. Starts the call."""
        return self._when_done(lambda call: None if (error := _failed(call)) is None else callback(error))

    def _when_done(self, callback: Callable[[Self], object]) -> Self:
        def guarded(call: Self) -> None:
            try:
                callback(call)
            except Exception:
                logging.getLogger("penstock").exception("a callback of %r failed", call)

        self.add_done_callback(guarded)
        return self


def _failed(call: asyncio.Future[Any]) -> BaseException | None:
    return asyncio.CancelledError() if call.cancelled() else call.exception()
