"""Routes: who gets the next start, what a host that comes back gets, and where a retry goes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand import Stand

from penstock.core.policy.retry import Retry
from penstock.core.policy.route import LeastConnections, LeastCost, RoundRobin, Route, Sticky, TwoChoices, Weighted
from penstock.core.request import Request
from penstock.core.router import Router
from penstock.errors import ConfigError, WorkerLost

ROUTES: list[Route] = [LeastCost(), LeastConnections(), TwoChoices(), RoundRobin(), Weighted([1, 1, 1, 1]), Sticky()]
SLOTS = 8


def hosts(stand: Stand) -> list[int]:
    """Where the works that run are."""
    router = stand.station.router
    assert router is not None
    return [router.host_of(work.replica).index for work in stand.started]


def stand(route: Route | None, count: int = 4, slots: int = SLOTS, **options: Any) -> Stand:
    return Stand(count * slots, hosts=tuple(f"h{n}" for n in range(count)), route=route, limits=(), **options)


def submit(on: Stand, affinity: object = "", **fields: Any) -> Request:
    request = Request(arrival=on.now, **fields)
    request.affinity = affinity
    on.do(on.scheduler.submit(on.station, request, on.now))
    return request


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: type(r).__name__)
def test_every_route_uses_every_slot_before_anything_waits(route: Route) -> None:
    on = stand(route)
    calls = [submit(on, affinity="one key") for _ in range(4 * SLOTS + 3)]
    assert Counter(hosts(on)) == dict.fromkeys(range(4), SLOTS)
    assert len(on.station.waiting) == 3 and len(calls) == 35


@pytest.mark.parametrize("route", [LeastCost(), LeastConnections(), RoundRobin(), Weighted([1, 1, 1, 1])])
def test_equal_calls_are_spread_evenly(route: Route) -> None:
    on = stand(route)
    for n in range(16):
        submit(on)
        counts = Counter(hosts(on))
        assert max(counts.values()) - min(counts[h] for h in range(4)) <= 1, f"after {n + 1}: {counts}"


def test_least_cost_looks_at_cost_and_least_connections_does_not() -> None:
    for route, expected in ((LeastCost(), 1), (LeastConnections(), 4)):
        on = stand(route, count=2)
        submit(on, cost=10.0)
        for _ in range(7):
            submit(on, cost=1.0)
        first = hosts(on)[0]
        assert Counter(hosts(on))[first] == expected


def test_ties_are_random_and_the_same_for_the_same_seed() -> None:
    def order(seed: int) -> list[int]:
        on = stand(LeastCost(), count=8, slots=1)
        on.scheduler.random = Random(seed)
        for _ in range(8):
            submit(on)
        return hosts(on)

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(8))


def test_weights_are_shares() -> None:
    on = stand(Weighted([1, 2, 5]), count=3, slots=100)
    for _ in range(160):
        submit(on)
    assert Counter(hosts(on)) == {0: 20, 1: 40, 2: 100}


def test_a_host_that_was_away_does_not_catch_up() -> None:
    on = stand(RoundRobin(), count=2, slots=50)
    for slot in range(50):
        on.do(on.scheduler.replica_down(on.station, slot, on.now))
    for _ in range(40):
        submit(on)
    for slot in range(50):
        on.do(on.scheduler.replica_up(on.station, slot, on.now))
    for _ in range(10):
        submit(on)
    assert Counter(hosts(on)) == {1: 45, 0: 5}


@pytest.mark.parametrize("route", [RoundRobin(), Weighted([1, 1, 1])])
def test_a_host_that_was_full_does_not_catch_up(route: Route) -> None:
    """Two are stuck, and all goes to the third; it is not left out until they have had as many."""
    on = stand(route, count=3, slots=20)
    for _ in range(60):
        submit(on)
    for _ in range(100):
        on.started.sort(key=lambda work: work.replica // 20 != 2)
        on.finish(0.01)
        submit(on)
    while on.started:
        on.finish()
    for _ in range(30):
        submit(on)
    assert all(9 <= Counter(hosts(on))[host] <= 11 for host in range(3)), Counter(hosts(on))


def test_weights_must_fit() -> None:
    for route in (Weighted([1, 2]), Weighted([1, 2, 3, 4, 5])):
        with pytest.raises(ConfigError, match="weights for 4 replicas"):
            stand(route)
    for wrong in ([], [1, 0]):
        with pytest.raises(ConfigError, match="greater than 0"):
            Weighted(wrong)
    with pytest.raises(ConfigError, match="greater than 1"):
        Sticky(bound=1.0)


# Sticky


def home(names: list[str], key: str) -> str:
    """The host of a key when nothing runs."""
    router = Router(Sticky(), tuple(names), 4)
    for slot in range(4 * len(names)):
        router.came_up(slot, 0.0)
        router.append(slot)
    request = Request()
    request.affinity = key
    return router.host_of(router.pick(request, 0.0, Random(0))).name


def test_a_key_keeps_its_host_and_a_new_host_takes_only_its_own_keys() -> None:
    names = [f"http://10.0.0.{n}:8000" for n in range(8)]
    keys = [f"session {n}" for n in range(2000)]
    before = {key: home(names, key) for key in keys}
    assert before == {key: home(list(reversed(names)), key) for key in keys}, "the order of hosts matters"
    counts = Counter(before.values())
    assert min(counts.values()) > 180 and max(counts.values()) < 320, counts  # 250 each, four standard deviations
    after = {key: home([*names, "http://10.0.0.99:8000"], key) for key in keys}
    moved = [key for key in keys if after[key] != before[key]]
    assert {after[key] for key in moved} == {"http://10.0.0.99:8000"}
    assert 150 < len(moved) < 300


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(1.05, 3.0))
def test_no_host_is_above_the_bound(keys: list[int], bound: float) -> None:
    on = stand(Sticky(bound=bound), slots=64)
    for n, key in enumerate(keys):
        submit(on, affinity=key)
        assert max(Counter(hosts(on)).values()) <= -(-bound * (n + 1) // 4), f"after {n + 1} of {keys}"


# Slow start and retries


def lose(on: Stand, host: int) -> None:
    slots = on.station.router.slots  # type: ignore[union-attr]
    for slot in range(host * slots, (host + 1) * slots):
        on.do(on.scheduler.replica_down(on.station, slot, on.now))


def regain(on: Stand, host: int, count: int = 0) -> None:
    slots = on.station.router.slots  # type: ignore[union-attr]
    for slot in range(host * slots, host * slots + (count or slots)):
        on.do(on.scheduler.replica_up(on.station, slot, on.now))


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: type(r).__name__)
def test_the_share_of_a_host_that_comes_back_only_grows(route: Route) -> None:
    on = stand(route, slow_start=10.0)
    lose(on, 2)
    regain(on, 2)
    got, keys = [], 0
    for _ in range(12):  # a second each, in which 4000 calls come one after the other
        count = 0
        for _ in range(4000):
            keys += 1
            submit(on, affinity=keys)
            count += hosts(on)[0] == 2
            on.finish(0.00025)
        got.append(count)
    assert got[0] < 200 and 880 < got[-1] < 1120, got
    assert all(a <= b + 120 for a, b in pairwise(got)), got  # four deviations of what chance adds
    if isinstance(route, RoundRobin | Weighted):
        assert got == sorted(got)


def test_a_host_that_warms_up_takes_what_no_other_has_room_for() -> None:
    on = stand(LeastCost(), count=2, slots=4, slow_start=1000.0)
    lose(on, 0)
    regain(on, 0)
    for _ in range(8):
        submit(on)
    assert Counter(hosts(on)) == {0: 4, 1: 4}


def test_a_host_on_trial_gets_its_first_call_at_once_and_then_few() -> None:
    on = stand(LeastCost(), slow_start=1.0)
    lose(on, 2)
    regain(on, 2, count=1)
    got = []
    for _ in range(400):
        submit(on)
        got.append(hosts(on)[0])
        on.finish(0.1)  # long beyond the slow start, which begins with the rest of its slots
    assert 2 in got[:20]
    assert 4 <= got.count(2) <= 25


@given(st.integers(0, 1000), st.sampled_from(ROUTES), st.integers(1, 3))
def test_a_retry_goes_elsewhere(seed: int, route: Route, slots: int) -> None:
    on = stand(route, slots=slots, safe=True, retry=Retry(attempts=3, base=0.0))
    on.scheduler.random = Random(seed)
    call = submit(on, affinity="key")
    first = hosts(on)[0]
    on.finish(0.1, WorkerLost("gone"))
    on.to(on.now)
    second = hosts(on)[0]
    assert second != first
    on.finish(0.1)
    assert call.outcome == "ok"


def test_a_retry_stays_where_it_failed_if_there_is_no_other() -> None:
    on = stand(LeastCost(), count=2, slots=1, safe=True, retry=Retry(attempts=3, base=0.0))
    lose(on, 1)
    submit(on)
    on.finish(0.1, WorkerLost("gone"))
    on.to(on.now)
    assert hosts(on) == [0]


def test_one_replica_a_host_needs_no_router() -> None:
    assert Stand(4).station.router is None
    assert Stand(None).station.router is None
    assert Stand(4, route=RoundRobin()).station.router is not None
