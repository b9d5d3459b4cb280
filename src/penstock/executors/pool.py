"""Where the threads of one service sleep, and whom a new work wakes.

Threads of a function are interchangeable and share one pool; each instance of a class is a pool of one. A thread that
finds nothing lists itself as idle and then looks again; a giver adds the work and then looks for the idle. So one of
the two sees the other, and each wake opens one thread's gate once, matched by one wait.

While units are shorter than a hand-off (`SHORT`), waking four threads for four works costs more than the works: they
queue for the GIL. Then one awake thread serves the others' works too, and while `holding`, tells the loop of many ends
at once. Should one of these units turn out to be long, `_watch` notices within a millisecond or two, wakes the sleepers
and leaves this mode until the mean is short again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from penstock.executors.bell import Gate

SHORT = 30e-6
OUTLIER = 200e-6
WATCH_EVERY = 0.001


class Pool:
    """The works that are ready for a thread, and the threads that sleep."""

    def __init__(self, loop: asyncio.AbstractEventLoop, drain: Callable[[], None]) -> None:
        self.ready: deque[Any] = deque()
        self.size = 0
        self.short = False
        self.holding = False
        self.closing = False
        self.leaving: deque[None] = deque()  # one for each thread that is to end
        self._loop = loop
        self._drain = drain
        self._idle: list[Gate] = []
        self._mean = OUTLIER
        self._ended = 0
        self._seen = 0
        self._watching: asyncio.TimerHandle | None = None

    # The loop's side.

    def give(self, work: Any) -> None:
        """Add a work; wakes a thread unless short works are being served by an awake one."""
        self.ready.append(work)
        if not self.short or len(self._idle) == self.size:
            self._wake()
        elif self._watching is None:
            self._seen = self._ended
            self.holding = True
            self._watching = self._loop.call_later(WATCH_EVERY, self._watch)

    def awake(self) -> int:
        """Threads that have work, or are about to look for some."""
        return self.size - len(self._idle)

    def close(self) -> None:
        """Every thread ends once nothing is ready."""
        self.closing = True
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        self._leave_short()

    def dismiss(self) -> None:
        """One thread, whichever finds nothing to do first, ends."""
        self.leaving.append(None)
        self._wake()

    def _watch(self) -> None:
        self._watching = None
        if len(self._idle) == self.size and not self.ready:
            self.holding = False
            return
        if self._ended != self._seen:
            self._seen = self._ended
            self.holding = True
            self._watching = self._loop.call_later(WATCH_EVERY, self._watch)
            return
        self._leave_short()
        self._drain()

    def _leave_short(self) -> None:
        self._mean, self.short, self.holding = OUTLIER, False, False
        for _ in range(self.size):
            self._wake()

    def _wake(self) -> None:
        try:
            gate = self._idle.pop()
        except IndexError:
            return
        gate.open()

    # The threads' side.

    def ended(self, elapsed: float) -> None:
        """Learn from a unit that took `elapsed` seconds. Races between threads lose a sample, nothing else."""
        self._ended += 1
        self._mean += 0.1 * (min(elapsed, OUTLIER) - self._mean)
        self.short = self._mean < SHORT

    def poll(self) -> Any:
        """The next ready work, or None."""
        if not self.ready:
            return None
        try:
            return self.ready.popleft()
        except IndexError:  # another thread was faster
            return None

    def wait(self, gate: Gate) -> Any:
        """The next ready work, slept for; None when the pool has closed. `gate` is the thread's own, shut."""
        ready, idle = self.ready, self._idle
        while True:
            work = self.poll()
            if work is not None or self.closing or (self.leaving and self._leaves()):
                return work
            idle.append(gate)
            if ready or self.closing or self.leaving:
                try:
                    idle.remove(gate)
                    continue
                except ValueError:  # picked for a wake just now: take it, so that the gate is shut again
                    pass
            gate.wait()

    def _leaves(self) -> bool:
        try:
            self.leaving.popleft()
        except IndexError:  # another thread was faster
            return False
        return True
