"""When time itself brings something: deadlines, the ends of waits, and looks at a station.

Most requests are over long before their deadline, and a heap is dear for what never comes. So a deadline that is further
away than `SOON` is only noted; what is still under way when that has passed goes into the heap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from heapq import heapify, heappop, heappush

from penstock.core.request import ABANDONED, Request
from penstock.core.station import Station

SOON = 0.05  # seconds


class Timers:
    """Of one scheduler. `wake_at` is when the first is due; ties are in the order of their coming."""

    __slots__ = ("dated", "heap", "most", "noted", "seq", "stations", "wake_at")

    def __init__(self, stations: Mapping[str, Station]) -> None:
        self.stations = stations
        self.heap: list[tuple[float, int, Request | Station | None]] = []  # None: look at what was noted
        self.noted: list[Request] = []
        self.most = 64  # that are noted before those are dropped that have ended
        self.dated = 0  # requests with a deadline that have not ended
        self.seq = 0
        self.wake_at = math.inf

    def date(self, request: Request, deadline: float, now: float) -> None:
        """One more request under way that has a deadline."""
        self.dated += 1
        if deadline - now <= SOON:
            self.add(deadline, request)
            return
        if not self.noted:
            self.add(now + SOON, None)
        self.noted.append(request)
        if len(self.noted) > self.most:
            self.noted = [r for r in self.noted if r.state < ABANDONED]
            self.most = 2 * len(self.noted) + 64

    def add(self, at: float, what: Request | Station | None) -> None:
        """Give this back at `at`; a request only if it has not ended."""
        heap = self.heap
        if len(heap) > 2 * (self.dated + len(self.stations)) + 64:
            heap[:] = [entry for entry in heap if _alive(entry)]
            heapify(heap)
        self.seq += 1
        heappush(heap, (at, self.seq, what))
        self.wake_at = heap[0][0]

    def pop(self, now: float) -> Request | Station | None:
        """The next that is due, if any is."""
        heap = self.heap
        found: Request | Station | None = None
        while found is None and heap and heap[0][0] <= now:
            entry = heappop(heap)
            if entry[2] is None:
                self._look()
            elif _alive(entry):
                found = entry[2]
        self.wake_at = heap[0][0] if heap else math.inf
        return found

    def _look(self) -> None:
        """Those that are still under way are no longer rare: they get a place in the heap."""
        noted, self.noted = self.noted, []
        for request in noted:
            if request.state < ABANDONED and request.deadline is not None:
                self.add(request.deadline, request)


def _alive(entry: tuple[float, int, Request | Station | None]) -> bool:
    at, _, what = entry
    if isinstance(what, Station):
        return at == what.check_at
    return what is None or what.state < ABANDONED
