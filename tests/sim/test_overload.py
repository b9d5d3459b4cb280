"""Overload in virtual time, all defaults: what is answered inside the callers' patience, as a share of capacity."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random

import pytest

from penstock.core.policy.batch import Batch
from penstock.core.policy.limit import Fixed
from penstock.core.station import StationOptions
from penstock.sim.crowd import Crowd, Draw

WARM = 4.0  # seconds, of which three at a fraction of the load, with callers who never leave
CAPACITY = 160.0  # of every one of these
STATIONS: dict[str, Callable[[], tuple[StationOptions, float]]] = {
    "50 ms x 8": lambda: (StationOptions("m", replicas=1, batch=Batch(max_size=8, max_wait=0.005), stage=True), 0.05),
    "16 slots of 100 ms": lambda: (StationOptions("m", replicas=16), 0.1),
    "on the loop, 16 at once": lambda: (StationOptions("m", limits=(Fixed(16),)), 0.1),
    "two of 100 ms x 8": lambda: (StationOptions("m", replicas=2, batch=Batch(max_size=8, max_wait=0.005), stage=True), 0.1),
    "one slot of 6.25 ms": lambda: (StationOptions("m", replicas=1), 0.00625),
}
BATCHED = "50 ms x 8"


def crowd_of(name: str = BATCHED, seed: int = 1) -> Crowd:
    options, seconds = STATIONS[name]()
    return Crowd(options, lambda work: seconds, seed)


def share(crowd: Crowd, start: float, end: float) -> float:
    return crowd.answered(start, end) / (end - start) / CAPACITY


@pytest.mark.parametrize("station", STATIONS)
@pytest.mark.parametrize("patience", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("factor", "seconds", "least"), [(2, 20.0, 0.98), (10, 8.0, 0.95)])
def test_callers_of_one_patience(factor: int, seconds: float, least: float, patience: float, station: str) -> None:
    crowd = crowd_of(station)
    crowd.poisson(0.4 * CAPACITY, lambda: 1e9, 0.0, 3.0)
    crowd.poisson(factor * CAPACITY, lambda: patience, WARM, WARM + seconds)
    crowd.drive.run()
    assert share(crowd, WARM, WARM + seconds) >= least


def test_a_flood_that_fills_the_queue_is_learned_from_once() -> None:
    """16,000 calls a second: ten thousand wait when the first leave, and thousands are dropped in the next moment."""
    crowd = Crowd(StationOptions("m", replicas=1, batch=Batch(max_size=32, max_wait=0.005), stage=True), lambda work: 0.01)
    crowd.poisson(0.4 * 3200, lambda: 1e9, 0.0, 3.0)
    crowd.poisson(5 * 3200, lambda: 1.0, WARM, WARM + 3.0)
    crowd.drive.run(WARM + 3.0)
    assert crowd.answered(WARM, WARM + 3.0) >= 0.97 * 3 * 3200


@pytest.mark.parametrize("station", STATIONS)
@pytest.mark.parametrize("factor", [1.2, 2.0, 10.0])
@pytest.mark.parametrize(("first", "then"), [(1.0, 0.3), (3.0, 0.3), (0.3, 1.0)])
def test_a_patience_that_changes_is_learned_at_once(first: float, then: float, factor: float, station: str) -> None:
    crowd = crowd_of(station)
    change = WARM + 12.0
    crowd.poisson(factor * CAPACITY, lambda: first if crowd.drive.now < change else then, WARM, change + 8.0)
    crowd.drive.run()
    assert share(crowd, change, change + 8.0) >= 0.96
    assert all(share(crowd, second, second + 1) >= 0.75 for second in range(int(change), int(change) + 7))


def test_a_queue_that_stands_leaves_its_callers_time_to_spare() -> None:
    """One start in forty takes 0.2 s longer, a tenth of the capacity. Were the queue as long as its callers stay, each of
    them would cost as much again: all who wait would come too late."""
    options, seconds = STATIONS[BATCHED]()
    starts = count(1)
    crowd = Crowd(options, lambda work: seconds + (0.2 if not next(starts) % 40 else 0.0))
    crowd.poisson(0.4 * CAPACITY, lambda: 1e9, 0.0, 3.0)
    crowd.poisson(3 * CAPACITY, lambda: 1.0, WARM, WARM + 20.0)
    crowd.drive.run(WARM + 20.0)
    assert share(crowd, WARM, WARM + 20.0) >= 0.885


def test_it_recovers_within_a_second() -> None:
    """After ten times the load, callers of half the load are all answered, at once."""
    crowd = crowd_of()
    crowd.poisson(10 * CAPACITY, lambda: 1.0, 0.0, 20.0)
    crowd.drive.run(21.0)
    before, offered = crowd.answers[""], crowd.offered[""]
    crowd.poisson(0.5 * CAPACITY, lambda: 1.0, 21.0, 31.0)
    crowd.drive.run()
    assert crowd.answers[""] - before >= 0.99 * (crowd.offered[""] - offered)


@pytest.mark.parametrize("early", [0.0, 0.02])
def test_bursts(early: float) -> None:
    crowd = crowd_of()
    random = crowd.random
    crowd.bursts(100, lambda: random.random() * 0.05 if random.random() < early else 1.0, 0.0, 59.5)
    crowd.drive.run()
    assert crowd.refused[""] == 0
    assert crowd.answers[""] >= (0.97 if early else 0.99) * crowd.offered[""]


@pytest.mark.parametrize("station", STATIONS)
def test_bursts_after_impatient_callers_do_not_pay_for_them(station: str) -> None:
    """What was learned from callers of 0.3 s refuses two bursts at most: then it has left the station idle."""
    crowd = crowd_of(station)
    crowd.poisson(2 * CAPACITY, lambda: 0.3, 0.0, 10.0)
    crowd.drive.run(11.0)
    crowd.bursts(100, lambda: 0.3, 11.0, 12.5)
    crowd.drive.run(13.0)
    answers, offered = crowd.answers[""], crowd.offered[""]
    crowd.bursts(100, lambda: 1.0, 14.0, 33.5)
    crowd.drive.run()
    assert crowd.answers[""] - answers >= 0.95 * (crowd.offered[""] - offered)


@pytest.mark.parametrize("mean", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("station", STATIONS)
def test_exponential_patience_against_a_queue_of_two_rounds(station: str, mean: float) -> None:
    def leave_after(crowd: Crowd) -> Draw:
        return lambda: crowd.random.expovariate(1 / mean)

    crowd, fixed = crowd_of(station), crowd_of(station)
    for each in (crowd, fixed):
        each.poisson(2 * CAPACITY, leave_after(each), WARM, WARM + 20.0)
    let_in = fixed.arrive
    most = 2 * (8 if station == BATCHED else 16)

    def bounded(patience: float, tenant: str = "") -> None:
        if len(fixed.station.waiting) + fixed.station.apart < most:
            let_in(patience, tenant)

    fixed.arrive = bounded  # type: ignore[method-assign]
    crowd.drive.run()
    fixed.drive.run()
    assert share(crowd, WARM, WARM + 20.0) >= 0.95 * share(fixed, WARM, WARM + 20.0)


@pytest.mark.parametrize("named", [True, False])
def test_callers_of_two_patiences(named: bool) -> None:
    crowd = crowd_of()
    for tenant, patience in (("a", 0.3), ("b", 3.0)):
        crowd.poisson(CAPACITY, lambda patience=patience: patience, WARM, WARM + 30.0, tenant if named else "")  # type: ignore[misc]
    crowd.drive.run()
    assert share(crowd, WARM, WARM + 30.0) >= 0.98
    if named:
        assert min(crowd.answers.values()) >= 0.45 * sum(crowd.answers.values())


@pytest.mark.parametrize("times", [1, 10])
@pytest.mark.parametrize("load", [0.8, 1.2, 2.0])
@pytest.mark.parametrize("station", STATIONS)
@pytest.mark.parametrize("drawn", [False, True])
def test_a_tenant_that_always_hangs_up_costs_the_others_little(station: str, load: float, times: int, drawn: bool) -> None:
    def goodput(with_it: bool) -> int:
        crowd, random = crowd_of(station, seed=3), Random(4)
        seconds = 20.0 if drawn else 8.0
        patience = (lambda: random.expovariate(0.5)) if drawn else (lambda: 1.0)
        crowd.poisson(load * CAPACITY, patience, WARM, WARM + seconds, "patient")
        if with_it:
            crowd.poisson(times * load * CAPACITY, lambda: 0.01, WARM, WARM + seconds, "hangs up")
        crowd.drive.run()
        return crowd.answers["patient"]

    assert goodput(True) >= 0.98 * goodput(False)


@pytest.mark.parametrize("load", [0.5, 1.2, 2.0])
def test_nor_does_it_where_one_start_is_all_there_is(load: float) -> None:
    """One replica of 100 ms: each start for nobody keeps everybody else waiting for all of it."""

    def goodput(with_it: bool) -> int:
        crowd, random = Crowd(StationOptions("m", replicas=1), lambda work: 0.1, seed=3), Random(4)
        crowd.poisson(load * 10, lambda: random.expovariate(0.5), 0.0, 300.0, "patient")
        if with_it:
            crowd.poisson(10 * load * 10, lambda: 0.01, 0.0, 300.0, "hangs up")
        crowd.drive.run()
        return crowd.answers["patient"]

    assert goodput(True) >= 0.98 * goodput(False)


@pytest.mark.parametrize("load", [0.8, 2.0])
@pytest.mark.parametrize("station", STATIONS)
def test_a_tenant_that_hung_up_and_now_stays_has_its_share_within_seconds(station: str, load: float) -> None:
    """Also where others leave no time to spare: it is tried nevertheless."""
    answers, change, seeds = 0, WARM + 10.0, range(3, 9)
    for seed in seeds:
        crowd = crowd_of(station, seed)
        patience = lambda drive=crowd.drive: 0.01 if drive.now < change else 3.0  # noqa: E731
        crowd.poisson(load * CAPACITY, lambda: 1.0, WARM, change + 9.0, "patient")
        crowd.poisson(0.5 * CAPACITY, patience, WARM, change + 9.0, "hangs up")
        crowd.drive.run(change + 4.0)
        answers -= crowd.answers["hangs up"]
        crowd.drive.run(change + 9.0)
        answers += crowd.answers["hangs up"]
    assert answers >= len(seeds) * 0.45 * 5.0 * CAPACITY


@pytest.mark.parametrize("tenant", ["", "alone"])
def test_where_nobody_else_waits_a_tenant_is_not_refused_for_hanging_up(tenant: str) -> None:
    crowd = crowd_of("16 slots of 100 ms")
    crowd.poisson(0.5 * CAPACITY, lambda: 0.01, WARM, WARM + 10.0, tenant)
    crowd.poisson(0.05 * CAPACITY, lambda: 1.0, WARM, WARM + 10.0, tenant)
    crowd.drive.run()
    assert crowd.answers[tenant] >= 0.9 * 0.05 * CAPACITY * 10
