"""An asyncio event loop in virtual time: it never sleeps, it moves its clock to the next timer.

A program that would wait for ever (nothing ready, no timer) is a lost wake-up, and one that turns for ever in one instant
waits for nobody; `Hang` says so at once.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

_MOST = 20_000  # turns in one instant


class Hang(AssertionError):
    """Nothing is ready and nothing is scheduled, and yet somebody waits; or time does not go on."""


class _Selector(selectors.DefaultSelector):
    """Where a real loop would sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.turn: Callable[[], None] | None = None
        self.turns = 0
        self.began = 0  # the first turn of this instant

    def select(self, timeout: float | None = None) -> Any:
        self.turns += 1
        if self.turn is not None:
            self.turn()
        if timeout is None:
            raise Hang(f"nothing will ever happen after {self.now:.6f} s")
        if timeout > 0:
            self.now += timeout
            self.began = self.turns
        elif self.turns - self.began > _MOST:
            raise Hang(f"{_MOST} turns at {self.now:.6f} s, and no end")
        return []  # no I/O in here


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at 0 seconds. `turn`, if set, is called once in each turn, between two callbacks."""

    def __init__(self, turn: Callable[[], None] | None = None) -> None:
        self._virtual = _Selector()
        self.failures: list[dict[str, Any]] = []
        super().__init__(self._virtual)
        self._virtual.turn = turn
        self.set_exception_handler(lambda loop, context: self.failures.append(context))

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual.now

    def watch(self, turn: Callable[[], None] | None) -> None:
        """Call `turn` once in each turn of the loop from now on."""
        self._virtual.turn = turn

    @property
    def turns(self) -> int:
        """How many turns the loop has made."""
        return self._virtual.turns
