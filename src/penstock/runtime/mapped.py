"""What became of one item of a `map`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from penstock.runtime.call import BoundCall
from penstock.runtime.compose import begin

if TYPE_CHECKING:
    from penstock.runtime.mapping import Mapping


class Mapped:
    """An item under way, then its answer or error. To its call it is what a future is to whoever awaits one."""

    __slots__ = ("call", "error", "mapping", "over", "value")

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.over = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.call: asyncio.Future[Any] | None = None  # while it is under way

    def begin(self, call: Any) -> None:
        """Begin what was made for this item: a call or any other awaitable."""
        if isinstance(call, BoundCall) and call.start_for(self):
            self.call = None if self.over else call  # it may have been refused
        else:
            self.call = future = begin(call)
            future.add_done_callback(self._settle, context=self.mapping.context)

    def _settle(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self.set_exception(asyncio.CancelledError())
        elif (error := future.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(future.result())

    def done(self) -> bool:
        return self.over

    def set_result(self, value: Any) -> None:
        self.value = value
        self.over, self.call = True, None
        self.mapping.came(self)

    def set_exception(self, error: BaseException) -> None:
        self.error = error
        self.over, self.call = True, None
        self.mapping.came(self)

    def cancel(self) -> asyncio.Future[Any] | None:
        """Nobody wants it any more; what is still to be waited for until it has stopped."""
        call, self.call = self.call, None
        self.over = True
        if isinstance(call, BoundCall):
            call.withdraw()
        elif call is not None:
            call.cancel()
        return None if getattr(call, "future", None) is self else call
