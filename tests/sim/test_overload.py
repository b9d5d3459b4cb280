"""Overload in virtual time, all defaults: what is answered inside the callers' patience, as a share of capacity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from penstock.core.policy.batch import Batch
from penstock.core.request import Request
from penstock.core.station import StationOptions
from penstock.sim.drive import Drive

WARM = 4.0  # seconds at a fraction of the load, with callers who never leave
SECONDS, SIZE = 0.05, 8
CAPACITY = SIZE / SECONDS


class Front:
    """One model behind default policies, and callers who send no deadline."""

    def __init__(self, seed: int = 1, seconds: float = SECONDS, size: int = SIZE) -> None:
        self.random = Random(seed)
        self.drive = Drive(lambda work: seconds)
        batch = Batch(max_size=size, max_wait=0.005)
        self.station = self.drive.add(StationOptions("model", replicas=1, batch=batch, stage=True))
        self.answers: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.offered: Counter[str] = Counter()
        self.times: list[float] = []

    def arrive(self, patience: float, tenant: str = "") -> None:
        self.offered[tenant] += 1
        self.drive.submit(self.station, Request(tenant=tenant), patience, self.ended)

    def ended(self, request: Request) -> None:
        if request.outcome == "ok":
            self.answers[request.tenant] += 1
            self.times.append(request.ended)
        elif request.outcome == "refused":
            self.refused[request.tenant] += 1

    def poisson(
        self, rate: float, patience: Callable[[], float], start: float = WARM, end: float = WARM + 60.0, tenant: str = ""
    ) -> None:
        """Calls at this rate; each one schedules the next, so that the heap stays small."""

        def come() -> None:
            self.arrive(patience(), tenant)
            self.poisson(rate, patience, self.drive.now, end, tenant)

        start += self.random.expovariate(rate)
        if start < end:
            self.drive.at(start, come)

    def share(self, seconds: float = 60.0) -> float:
        """Answers within the measured time, of what the model could have answered."""
        return sum(WARM <= at <= WARM + seconds for at in self.times) / seconds / CAPACITY


@pytest.mark.parametrize("patience", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("factor", "seconds", "least"), [(2, 60.0, 0.98), (10, 20.0, 0.95)])
def test_callers_of_one_patience(factor: int, seconds: float, least: float, patience: float) -> None:
    front = Front()
    front.poisson(0.4 * CAPACITY, lambda: 1e9, start=0.0, end=3.0)
    front.poisson(factor * CAPACITY, lambda: patience, end=WARM + seconds)
    front.drive.run()
    assert front.share(seconds) >= least


def test_it_recovers_within_a_second() -> None:
    """After ten times the load, callers of half the load are all answered, at once."""
    front = Front()
    front.poisson(10 * CAPACITY, lambda: 1.0, start=0.0, end=20.0)
    front.drive.run(21.0)
    before, offered = front.answers[""], front.offered[""]
    front.poisson(0.5 * CAPACITY, lambda: 1.0, start=21.0, end=31.0)
    front.drive.run()
    assert front.answers[""] - before >= 0.99 * (front.offered[""] - offered)


@pytest.mark.parametrize("early", [0.0, 0.02])
def test_bursts(early: float) -> None:
    front = Front()
    random = front.random
    for second in range(60):
        for _ in range(100):
            patience = random.random() * 0.05 if random.random() < early else 1.0
            front.drive.at(second + random.random() * 0.002, lambda patience=patience: front.arrive(patience))  # type: ignore[misc]
    front.drive.run()
    assert front.refused[""] == 0
    assert front.answers[""] >= (0.97 if early else 0.99) * front.offered[""]


def test_exponential_patience_against_a_queue_of_two_batches() -> None:
    def leave_after(front: Front) -> Callable[[], float]:
        return lambda: front.random.expovariate(0.5)

    front, fixed = Front(), Front()
    for each in (front, fixed):
        each.poisson(2 * CAPACITY, leave_after(each))
    enter = fixed.arrive

    def bounded(patience: float, tenant: str = "") -> None:
        if len(fixed.station.waiting) + fixed.station.apart < 2 * SIZE:
            enter(patience, tenant)

    fixed.arrive = bounded  # type: ignore[method-assign]
    front.drive.run()
    fixed.drive.run()
    assert front.share() >= 0.95 * fixed.share()


@pytest.mark.parametrize("load", [0.9, 2.0])
def test_a_tenant_that_always_hangs_up_costs_the_others_little(load: float) -> None:
    def goodput(with_quitter: bool) -> int:
        front = Front(seed=3)
        front.poisson(load * CAPACITY, lambda: 1.0, tenant="good")
        if with_quitter:
            quits = Random(4)

            def come() -> None:
                front.arrive(0.01, "quitter")
                if front.drive.now < WARM + 60.0:
                    front.drive.at(front.drive.now + quits.expovariate(0.5 * CAPACITY), come)

            front.drive.at(WARM, come)
        front.drive.run()
        return front.answers["good"]

    assert goodput(True) >= 0.98 * goodput(False)
