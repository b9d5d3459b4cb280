"""Whether the GIL serialises a service's threads.

Three signs must agree over a window: on average 1.5 threads or more had work; together they would have used about one
core and no more, while for the rest of that time they neither ran nor waited for a core; and threads that let go of the
GIL for a moment often waited for it: a quarter of a switch interval or more, where an idle GIL comes back in
microseconds. The first two alone would blame threads that sleep half of the time, or release the GIL in turns.

What a thread runs and what it waits for a core are the kernel's own figures (`schedstat`), so a busy machine is not
taken for a busy GIL. They are read from the loop's thread, and how many threads have work is sampled there, so a unit
pays nothing; the probe runs at most four times a second and thread, between units.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

WINDOW = 1.0
LONGEST_WINDOW = 10.0
PROBE_EVERY = 0.25
PROBE_SLEEP = 0.0002
ENOUGH_PROBES = 4
MOST = 64  # threads: more mostly wait, and each costs a reading


class Reading(NamedTuple):
    """Totals since the start: seconds run on a core, and waited for one; probes, and those that waited."""

    ran: float
    queued: float
    probes: float
    waits: float


class Meter:
    """One thread's use of cores and of the GIL, kept by that thread and read by the loop's."""

    __slots__ = ("_clock", "_stat", "next_probe", "probes", "waits")

    def __init__(self) -> None:
        self.probes = 0
        self.waits = 0
        self.next_probe = 0.0
        self._clock: int | None = None
        self._stat = ""

    def attach(self) -> None:
        """Called in the thread itself, once."""
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        stat = f"/proc/self/task/{threading.get_native_id()}/schedstat"
        self._stat = stat if os.path.exists(stat) else ""

    def mute(self) -> None:
        """Nobody will ask: no probes."""
        self.next_probe = float("inf")

    def probe(self) -> None:
        """Between units: now and then, see how long the GIL takes to come back."""
        queued = self._cores()[1]
        now = time.perf_counter()
        time.sleep(PROBE_SLEEP)
        late = time.perf_counter() - now - PROBE_SLEEP
        self.next_probe = now + PROBE_EVERY
        self.probes += 1
        if late - (self._cores()[1] - queued) > 0.25 * sys.getswitchinterval():
            self.waits += 1

    def reading(self) -> Reading:
        """Where this thread's time has gone."""
        return Reading(*self._cores(), self.probes, self.waits)

    def _cores(self) -> tuple[float, float]:
        """Seconds run, and seconds waited for a core."""
        if self._stat:
            try:
                with open(self._stat) as file:
                    ran, queued, _ = file.read().split()
                return int(ran) * 1e-9, int(queued) * 1e-9
            except OSError:  # the thread has ended
                return 0.0, 0.0
        return (time.clock_gettime(self._clock) if self._clock is not None else 0.0), 0.0


class GilWatch:
    """Compares the meters of one service's threads with themselves a window earlier. `awake()`: threads that have work."""

    def __init__(self, meters: Iterable[Meter], awake: Callable[[], int]) -> None:
        self._meters = list(meters)
        self._awake = awake
        self._bound = False
        self._start = 0.0
        self._base = Reading(0.0, 0.0, 0, 0)
        self._crowd = self._samples = 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._silent = cores < 2 or not 2 <= len(self._meters) <= MOST
        if self._silent:
            for meter in self._meters:
                meter.mute()

    def bound(self) -> bool:
        """The verdict on the last full window; to be asked a few times in each."""
        if self._silent:
            return False
        self._crowd += self._awake()
        self._samples += 1
        now = time.perf_counter()
        if self._start and now - self._start < WINDOW:
            return self._bound
        total = Reading(*(sum(column) for column in zip(*(meter.reading() for meter in self._meters), strict=True)))
        if self._start:
            wall = now - self._start
            window = Reading(*(after - before for after, before in zip(total, self._base, strict=True)))
            if window.probes < ENOUGH_PROBES and wall < LONGEST_WINDOW:
                return self._bound
            self._bound = serialised(self._crowd / self._samples, window, wall)
        self._start, self._base = now, total
        self._crowd = self._samples = 0
        return self._bound


def serialised(awake: float, window: Reading, wall: float) -> bool:
    """The three signs, over `wall` seconds in which so many threads had work on average."""
    ran, wanted = window.ran / wall, (window.ran + window.queued) / wall
    one_core = ran <= 1.15 and 0.8 <= wanted <= 0.75 * awake
    held = window.probes >= 2 and window.waits >= 0.3 * window.probes
    return awake >= 1.5 and one_core and held
