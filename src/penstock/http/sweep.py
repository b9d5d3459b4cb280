"""One coarse clock for many waiting things: an integer that is counted up every `period` seconds.

A timer per request costs microseconds and is nearly always cancelled. Here a member only remembers the tick at which it
began to wait; once a period each member is asked to compare. A limit of s seconds ends between s and s + 2 periods.
"""

from __future__ import annotations

import asyncio
from math import ceil
from typing import Protocol


class Swept(Protocol):
    def swept(self, tick: int) -> None: ...


class Sweep:
    """Calls `swept(tick)` of each member once a period. Runs from `start` to `stop`."""

    __slots__ = ("_handle", "_loop", "members", "period", "tick")

    def __init__(self, period: float) -> None:
        self.period = period
        self.tick = 0
        self.members: dict[Swept, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None

    def ticks(self, seconds: float) -> int:
        """How many ticks must have passed before `seconds` certainly have."""
        return ceil(seconds / self.period) + 1

    def start(self) -> None:
        if self._handle is None:
            self._loop = asyncio.get_running_loop()
            self._handle = self._loop.call_later(self.period, self._turn)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _turn(self) -> None:
        assert self._loop is not None
        self._handle = self._loop.call_later(self.period, self._turn)
        self.tick = tick = self.tick + 1
        for member in list(self.members):
            member.swept(tick)
