"""Whether the GIL serialises a service's threads.

Three signs must agree over a window: on average 1.5 threads or more were inside a body, together they used about one
core (0.8 to 1.15), and a thread that let go of the GIL for a moment waited for about a switch interval to get it back.
The first two alone would blame threads that sleep half of the time, or release the GIL in turns. CPU time is read from
the loop's thread, through each thread's CPU clock, so a unit pays for two readings of the clock only; the probe runs at
most four times a second and thread, between units.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable

WINDOW = 1.0
LONGEST_WINDOW = 10.0
PROBE_EVERY = 0.25
PROBE_SLEEP = 0.0002
ENOUGH_PROBES = 4


class Meter:
    """One thread's busy time, kept by that thread and read by the loop's."""

    __slots__ = ("_next_probe", "busy", "clock", "probes", "since", "waits")

    def __init__(self) -> None:
        self.busy = 0.0
        self.since = 0.0
        self.probes = 0
        self.waits = 0
        self.clock: int | None = None
        self._next_probe = 0.0

    def attach(self) -> None:
        """Called in the thread itself, once."""
        if hasattr(time, "pthread_getcpuclockid"):
            self.clock = time.pthread_getcpuclockid(threading.get_ident())

    def probe(self) -> None:
        """Between units: now and then, see how long the GIL takes to come back."""
        now = time.perf_counter()
        if now < self._next_probe:
            return
        self._next_probe = now + PROBE_EVERY
        time.sleep(PROBE_SLEEP)
        self.probes += 1
        if time.perf_counter() - now > PROBE_SLEEP + 0.5 * sys.getswitchinterval():
            self.waits += 1

    def reading(self, now: float) -> tuple[float, float, int, int]:
        """Busy seconds so far, CPU seconds so far, probes, and probes that waited."""
        since = self.since
        busy = self.busy + (now - since if since else 0.0)
        try:
            cpu = time.clock_gettime(self.clock) if self.clock is not None else 0.0
        except OSError:
            cpu = 0.0  # the thread has ended
        return busy, cpu, self.probes, self.waits


class GilWatch:
    """Compares the meters of one service's threads with themselves a window earlier."""

    def __init__(self, meters: Iterable[Meter]) -> None:
        self._meters = list(meters)
        self._bound = False
        self._start = 0.0
        self._base: tuple[float, float, int, int] = (0.0, 0.0, 0, 0)
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def bound(self) -> bool:
        """The verdict on the last full window; asked as often as the caller likes."""
        if self._cores < 2 or len(self._meters) < 2:
            return False
        now = time.perf_counter()
        if self._start and now - self._start < WINDOW:
            return self._bound
        readings = [meter.reading(now) for meter in self._meters]
        busy, cpu = sum(reading[0] for reading in readings), sum(reading[1] for reading in readings)
        probes, waits = sum(reading[2] for reading in readings), sum(reading[3] for reading in readings)
        if self._start:
            wall, base = now - self._start, self._base
            asked = probes - base[2]
            if asked < ENOUGH_PROBES and wall < LONGEST_WINDOW:
                return self._bound
            crowded = (busy - base[0]) / wall >= 1.5
            one_core = 0.8 <= (cpu - base[1]) / wall <= 1.15
            held = asked >= 2 and (waits - base[3]) >= 0.5 * asked
            self._bound = crowded and one_core and held
        self._start, self._base = now, (busy, cpu, probes, waits)
        return self._bound
