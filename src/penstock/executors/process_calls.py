"""Calls that bodies in a child make of other services: run here, answered there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penstock.errors import ConfigError
from penstock.executors.base import Host
from penstock.executors.child.outcome import failure
from penstock.executors.child.wire import ANSWER, Frame

if TYPE_CHECKING:
    from penstock.executors.process_child import Child


class Calls:
    """The calls of one child that have not ended."""

    def __init__(self, child: Child, host: Host) -> None:
        self._child = child
        self._host = host
        self._running: dict[int, Any] = {}

    def begin(self, frame: Frame, whose: Callable[[int, int], Any]) -> None:
        """Start a call on behalf of the request that makes it; of none, if that has ended."""
        number, name = frame.number, "a call"
        try:
            unit, index, name, args, kwargs, within = frame.load()
            call = self._host.called(whose(unit, index), index >= 0, name, args, kwargs, within)
        except Exception as error:
            self._answer(number, name, None, error)
            return
        self._running[number] = call
        call.add_done_callback(lambda done: self._ended(number, name, done))

    def drop(self, number: int) -> None:
        """The child does not want this answer any more."""
        call = self._running.pop(number, None)
        if call is not None:
            call.cancel()

    def cancel(self) -> None:
        """Nobody waits for what the child does: it hears of its calls' ends, and so comes to its own."""
        for call in list(self._running.values()):
            call.cancel()

    def abandon(self) -> None:
        """The child has died."""
        for number in list(self._running):
            self.drop(number)

    def _ended(self, number: int, name: str, call: Any) -> None:
        error = asyncio.CancelledError() if call.cancelled() else call.exception()
        if self._running.pop(number, None) is not None:
            self._answer(number, name, None if error is not None else call.result(), error)

    def _answer(self, number: int, name: str, result: Any, error: BaseException | None) -> None:
        try:
            self._child.answer(ANSWER, number, (result, None if error is None else failure(0, error, name)))
        except Exception as unsendable:
            wrong = ConfigError(f"{name}: its answer cannot be sent to the process that called it: {unsendable}")
            self._child.answer(ANSWER, number, (None, failure(0, wrong, name)))
