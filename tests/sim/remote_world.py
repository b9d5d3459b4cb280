"""Four remotes behind one station, in virtual time: scheduler, route and breakers together, as the executor joins them."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any

from penstock.core.check import check, idle
from penstock.core.commands import End, Start
from penstock.core.fleet import EJECTED, Fleet
from penstock.core.policy.breaker import Breaker
from penstock.core.policy.retry import Retry
from penstock.core.policy.route import Route
from penstock.core.request import RUNNING, Request, Work
from penstock.core.scheduler import Scheduler
from penstock.core.station import StationOptions
from penstock.errors import RemoteFailed, ServiceError

SLOTS, SECONDS = 16, 0.02
RETRY = Retry(attempts=3, base=0.005, cap=0.1, budget=0.1, reserve=20.0, on=(ServiceError,))


@dataclass
class Fault:
    """From `start` to `end` this remote takes `factor` times as long, fails (at once, or as late), or is gone: nothing can be sent to it."""

    remote: int
    start: float
    end: float
    factor: float = 1.0
    fails: bool = False
    gone: bool = False


class World:
    """Arrivals are Poisson's."""

    slots, slow_start, breaker = SLOTS, 5.0, Breaker()

    def __init__(
        self,
        seed: int,
        route: Route,
        faults: list[Fault],
        rate: float,
        until: float,
        count: int = 4,
        retry: Retry | None = RETRY,
    ) -> None:
        self.random = Random(seed)
        self.scheduler = Scheduler(Random(seed + 1))
        self.fleet = Fleet(count, self.breaker)
        names = tuple(f"http://10.0.0.{n}" for n in range(count))
        options = StationOptions(
            "remote",
            replicas=count * self.slots,
            hosts=names,
            route=route,
            slow_start=self.slow_start,
            safe=retry is not None,
            retry=retry,
            limits=(),
        )
        self.station = self.scheduler.add(options)
        self.faults = faults
        self.now = 0.0
        self.events: list[tuple[float, int, str, Any]] = []
        self.number = 0
        self.open = [0] * count
        self.ended: list[tuple[float, float, str]] = []  # sent, seconds, outcome
        self.starts: list[tuple[float, int]] = []
        for index in range(count):
            self.follow(index)
        at = 0.0
        while at < until:
            at += self.random.expovariate(rate)
            self.at(at, "arrive", None)

    def at(self, when: float, what: str, subject: Any) -> None:
        self.number += 1
        heappush(self.events, (when, self.number, what, subject))

    def run(self) -> World:
        while self.events:
            wake = min(self.scheduler.wake_at, self.fleet.wake_at)
            if self.events[0][0] <= wake:
                self.now, _, what, subject = heappop(self.events)
                getattr(self, what)(subject)
            elif self.fleet.wake_at <= self.scheduler.wake_at:
                self.now = max(self.now, self.fleet.wake_at)
                self.changed(self.fleet.tick(self.now))
            else:
                self.now = max(self.now, self.scheduler.wake_at)
                self.do(self.scheduler.tick(self.now))
            check(self.scheduler, self.now)
            ejected = sum(member.state is EJECTED for member in self.fleet.members)
            assert ejected <= self.fleet.most
        idle(self.scheduler)
        return self

    def arrive(self, _: None) -> None:
        request = Request(arrival=self.now)
        request.affinity = self.random.randrange(1000)
        self.do(self.scheduler.submit(self.station, request, self.now))

    def do(self, commands: Any) -> None:
        for command in commands:
            if isinstance(command, Start):
                self.begin(command.work)
            else:
                assert isinstance(command, End)
                self.ended.append((command.request.submitted, self.now - command.request.submitted, command.request.outcome))

    def begin(self, work: Work) -> None:
        remote = work.replica // self.slots
        assert self.fleet.slots(remote, self.slots) > 0, "an ejected remote was given work"
        self.starts.append((self.now, remote))
        fault = next((f for f in self.faults if f.remote == remote and f.start <= self.now < f.end), None)
        if fault is not None and (fault.fails or fault.gone):
            error = RemoteFailed("it cannot be reached" if fault.gone else "500")
            error.begun = not fault.gone
            late = fault.factor * SECONDS if fault.factor > 1 else 0.001
            self.at(self.now + late, "stop", (work, error))
        else:
            seconds = self.random.lognormvariate(0.0, 0.2) * SECONDS * (fault.factor if fault is not None else 1.0)
            self.at(self.now + seconds, "stop", (work, None))

    def stop(self, what: tuple[Work, Exception | None]) -> None:
        work, error = what
        remote, request = work.replica // self.slots, work.requests[0]
        if error is None:
            self.changed(self.fleet.answered(remote, work.started, self.now))
        else:
            self.changed(self.fleet.failed(remote, work.started, str(error), self.now))
        live = request.state == RUNNING
        commands = self.scheduler.finish(work, self.now, [error], measured=error is None)
        if live and request.outcome:
            self.ended.append((request.submitted, self.now - request.submitted, request.outcome))
        self.do(commands)

    def changed(self, changes: Any) -> None:
        for change in changes:
            self.follow(change.member)

    def follow(self, index: int) -> None:
        has, wants = self.open[index], self.fleet.slots(index, self.slots)
        self.open[index] = wants
        for slot in range(wants, has):
            self.do(self.scheduler.replica_down(self.station, index * self.slots + slot, self.now))
        for slot in range(has, wants):
            self.do(self.scheduler.replica_up(self.station, index * self.slots + slot, self.now))

    def p99(self, start: float, end: float) -> float:
        seconds = sorted(took for sent, took, _ in self.ended if start <= sent < end)
        return seconds[int(0.99 * len(seconds))]
