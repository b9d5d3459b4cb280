#!/usr/bin/env python3
"""Row D in virtual time: overload, bursts and exponential patience on the scheduler alone, all defaults.

    python bench/overload.py

Answers inside the window as a share of capacity; callers leave after their patience and send no deadline.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from penstock.core.commands import Command, End, Revoke, Start
from penstock.core.policy.batch import Batch
from penstock.core.request import RUNNING, Request, Work
from penstock.core.scheduler import Scheduler
from penstock.core.station import StationOptions

WARM_UP = 4.0  # seconds at a fraction of the load, with callers who never leave


class Overload:
    """One run: a model of `cost` seconds a batch of `size`, and callers with a patience each."""

    def __init__(self, cost: float, size: int, seed: int = 1) -> None:
        self.cost, self.capacity = cost, size / cost
        self.random = Random(seed)
        self.scheduler = Scheduler(Random(seed))
        batch = Batch(max_size=size, max_wait=0.005)
        self.station = self.scheduler.add(StationOptions("model", replicas=1, batch=batch, stage=True))
        self.scheduler.replica_up(self.station, 0, 0.0)
        self.events: list[tuple[float, int, str, Any]] = []
        self.number = self.answered = self.refused = self.left = self.offered = 0
        self.end = 0.0

    def at(self, when: float, what: str, subject: Any) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, what, subject))

    def poisson(self, start: float, end: float, rate: float, patience: Callable[[], float], counted: bool = True) -> None:
        while start < end:
            start += self.random.expovariate(rate)
            self.at(start, "arrive", (patience(), counted))

    def run(self, seconds: float) -> None:
        self.end = WARM_UP + seconds
        while self.events:
            if self.scheduler.wake_at < self.events[0][0]:
                now = self.scheduler.wake_at
                self.apply(self.scheduler.tick(now), now)
                continue
            now, _, what, subject = heapq.heappop(self.events)
            getattr(self, what)(subject, now)

    def arrive(self, subject: tuple[float, bool], now: float) -> None:
        patience, counted = subject
        request = Request(counted, arrival=now)
        self.offered += counted
        self.apply(self.scheduler.submit(self.station, request, now), now)
        if not request.outcome:
            self.at(now + patience, "leave", request)

    def leave(self, request: Request, now: float) -> None:
        if not request.outcome:
            self.left += 1
            self.apply(self.scheduler.cancel(request, now), now)

    def finish(self, work: Work, now: float) -> None:
        staged = self.station.replicas[0].staged
        if now <= self.end:
            self.answered += sum(request.state == RUNNING and bool(request.item) for request in work.requests)
        self.apply(self.scheduler.finish(work, now), now)
        if staged is not None:
            self.apply(self.scheduler.taken(staged, now), now)
            self.at(now + self.cost, "finish", staged)

    def apply(self, commands: Sequence[Command], now: float) -> None:
        todo = list(commands)
        while todo:
            command = todo.pop(0)
            if isinstance(command, Start):
                self.at(now + self.cost, "finish", command.work)
            elif isinstance(command, Revoke) and command.work.staged:
                todo += self.scheduler.revoked(command.work, now)
            elif isinstance(command, End):
                self.refused += bool(command.request.item)


def report(name: str, run: Overload, seconds: float, of: float) -> None:
    share = run.answered / seconds / of
    print(f"{name:52} {share:6.1%}  offered {run.offered:6} refused {run.refused:6} left {run.left:5}", flush=True)


def main() -> None:
    for cost, size, seconds in ((0.05, 8, 60.0), (0.01, 32, 30.0)):
        for patience in (0.3, 1.0, 3.0):
            for factor in (2, 10):
                run = Overload(cost, size)
                run.poisson(0.0, 3.0, 0.4 * run.capacity, lambda: 1e9, counted=False)
                run.poisson(WARM_UP, WARM_UP + seconds, factor * run.capacity, lambda p=patience: p)  # type: ignore[misc]
                run.run(seconds)
                report(f"{cost * 1e3:g} ms x {size}, {factor}x, patience {patience:g} s", run, seconds, run.capacity)
    for early in (0.0, 0.02):
        run = Overload(0.05, 8)
        for second in range(60):
            for _ in range(100):
                patience = run.random.random() * 0.05 if run.random.random() < early else 1.0
                run.at(WARM_UP + second + run.random.random() * 0.002, "arrive", (patience, True))
        run.run(61.0)
        report(f"bursts of 100/s, {early:.0%} leave within 50 ms", run, 60.0, 100.0)
    run = Overload(0.05, 8)
    run.poisson(WARM_UP, WARM_UP + 60.0, 320.0, lambda: run.random.expovariate(0.5))
    run.run(60.0)
    report("exponential patience, mean 2 s, 2x", run, 60.0, run.capacity)


if __name__ == "__main__":
    main()
