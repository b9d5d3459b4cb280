"""The tasks of calls that were started and whose bodies run on the loop.

Of very many calls, as in a large `gather`, the tasks are made a few hundred at a time: what many tasks cost is less their
work than that all of them are there at once, for the garbage collector and in one turn of the loop.
"""

from __future__ import annotations

from collections import deque
from contextvars import Context, copy_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.runtime.call import BoundCall
    from penstock.runtime.driver import Runtime

_MOST = 256


class Tasks:
    """Begins calls in the order in which they were started, at most `_MOST` in one turn of the loop."""

    def __init__(self, runtime: Runtime) -> None:
        self.context = Context()  # for callbacks that do not mind in which they run
        self._runtime = runtime
        self._made = 0  # in this turn
        self._later: deque[BoundCall] = deque()

    def start(self, call: BoundCall) -> None:
        """Run this call in a task of its own, in a copy of the context that is current here."""
        loop = self._runtime.loop
        if self._made < _MOST and not self._later:
            if not self._made:
                loop.call_soon(self._turn)
            self._made += 1
            loop.create_task(call.drive())
        else:
            call.context = copy_context()
            self._later.append(call)

    def _turn(self) -> None:
        loop, later = self._runtime.loop, self._later
        self._made = min(len(later), _MOST)
        if self._made:
            loop.call_soon(self._turn)
        for _ in range(self._made):
            call = later.popleft()
            loop.create_task(call.drive(), context=call.context)
