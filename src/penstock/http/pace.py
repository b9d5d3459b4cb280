"""Starting many streams at once without stopping those that run.

A thousand requests may arrive in one turn of the loop, and starting them all before any timer fires would hold up
every running stream. So only some start in each turn; the rest wait for the next, in order.
"""

from __future__ import annotations

import asyncio
from collections import deque

_A_TURN = 16  # starts, of some 50 us each


class Pacer:
    """Lets `_A_TURN` streams start in a turn of the loop."""

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.started = 0
        self.turning = False

    async def turn(self) -> None:
        """Wait, if this turn of the loop has seen enough starts."""
        if self.started < _A_TURN and not self.waiting:
            self.started += 1
            self._turn_later()
            return
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.waiting.append(future)
        self._turn_later()
        await future

    def _turn_later(self) -> None:
        if not self.turning:
            self.turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self.turning = False
        self.started = 0
        while self.waiting and self.started < _A_TURN:
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(None)
                self.started += 1
        if self.started:
            self._turn_later()
