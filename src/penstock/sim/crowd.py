"""Callers who send no deadline and leave when their patience ends: one station with default policies, in virtual time.

What counts is answers inside the callers' own patience, as a share of what the station can answer when nobody leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from penstock.core.request import Request, Work
from penstock.core.station import StationOptions
from penstock.sim.drive import Drive

Draw = Callable[[], float]  # seconds


class Crowd:
    """The callers of one station. `seconds(work)` is how long the station's work runs."""

    def __init__(self, options: StationOptions, seconds: Callable[[Work], float], seed: int = 1) -> None:
        self.random = Random(seed)
        self.drive = Drive(seconds)
        self.station = self.drive.add(options)
        self.offered: Counter[str] = Counter()  # by tenant
        self.answers: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.times: list[float] = []  # of answers

    def arrive(self, patience: float, tenant: str = "") -> None:
        self.offered[tenant] += 1
        self.drive.submit(self.station, Request(tenant=tenant), patience, self._ended)

    def _ended(self, request: Request) -> None:
        if request.outcome == "ok":
            self.answers[request.tenant] += 1
            self.times.append(request.ended)
        elif request.outcome == "refused":
            self.refused[request.tenant] += 1

    def poisson(self, rate: float, patience: Draw, start: float, end: float, tenant: str = "") -> None:
        """Calls at this rate; each one schedules the next, so that the heap stays small."""

        def come() -> None:
            self.arrive(patience(), tenant)
            wait()

        def wait() -> None:
            at = self.drive.now + gaps.expovariate(rate)
            if at < end:
                self.drive.at(at, come)

        gaps = Random(self.random.random())
        self.drive.at(start, wait)

    def bursts(self, size: int, patience: Draw, start: float, end: float, every: float = 1.0) -> None:
        """`size` calls within two milliseconds, again and again."""
        while start < end:
            for _ in range(size):
                self.drive.at(start + 0.002 * self.random.random(), lambda: self.arrive(patience()))
            start += every

    def answered(self, start: float, end: float) -> int:
        return sum(start <= at <= end for at in self.times)
