"""Which calls run together, why a batch goes when it goes, and what is learned of its cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand import Stand

from penstock.core.estimate import ServiceTime
from penstock.core.policy.batch import Batch, Pricing, choose, release
from penstock.core.request import Request
from penstock.core.station import Station, StationOptions
from penstock.executors.process_trial import Trial


def padded(items: Any) -> float:
    return float(len(items) * max(items))


def requests(policy: Batch, values: list[int], now: float = 0.0, deadline: float | None = None) -> list[Request]:
    made = []
    for n, value in enumerate(values):
        request = Request(value=value, cost=policy.alone(value), deadline=deadline)
        request.seq, request.submitted = n, now
        made.append(request)
    return made


def known(a: float, b: float) -> ServiceTime:
    time = ServiceTime()
    for cost in (1.0, 8.0, 64.0, 200.0) * 20:
        time.add(cost, a + b * cost)
    return time


def values_of(chosen: list[Request]) -> list[int]:
    return [request.value for request in chosen]


def test_a_full_batch_goes_at_once_and_a_lone_call_waits_for_company() -> None:
    stand = Stand(1, batch=Batch(max_size=3, max_wait=0.01))
    stand.submit()
    assert not stand.started
    stand.to(0.0101)
    assert [(len(w.requests), w.reason) for w in stand.started] == [(1, "wait")]
    stand.finish(0.01)
    for _ in range(3):
        stand.submit()
    assert [(len(w.requests), w.reason) for w in stand.started] == [(3, "size")]


def test_a_near_deadline_and_a_drain_release() -> None:
    stand = Stand(1, batch=Batch(max_size=8, max_wait=1.0))
    stand.submit(deadline=0.6)
    stand.to(0.2)
    assert [w.reason for w in stand.started] == ["deadline"]
    stand.finish(0.01)
    stand.submit()
    stand.do(stand.scheduler.drain(stand.now))
    assert [w.reason for w in stand.started] == ["drain"]


def test_only_like_with_like() -> None:
    stand = Stand(1, batch=Batch(max_size=4, max_wait=0.0, key=lambda value: value % 2))
    stand.submit(value=0, key=0)
    for value in (1, 2, 3, 4):
        stand.submit(value=value, key=value % 2)
    stand.finish(0.1)
    assert values_of(stand.started[0].requests) == [1, 3]


@given(values=st.lists(st.integers(1, 50), min_size=1, max_size=30), size=st.integers(1, 9), most=st.integers(50, 120))
def test_no_batch_costs_or_counts_too_much_and_the_first_is_always_in(values: list[int], size: int, most: int) -> None:
    policy = Batch(max_size=size, cost=padded, max_cost=float(most))
    pricing = Pricing(policy.cost)
    for _ in range(4):  # by the function at first, by formula later
        window = requests(policy, values)
        chosen, _ = choose(policy, pricing, window, 0.0, ServiceTime())
        assert chosen[0] is window[0]
        assert len(chosen) <= size
        assert pricing.exact(chosen) <= most


def test_it_is_filled_with_calls_of_like_length() -> None:
    policy = Batch(max_size=3, cost=padded)
    chosen, bound = choose(policy, Pricing(padded), requests(policy, [10, 90, 11, 80, 9]), 0.0, ServiceTime())
    assert sorted(values_of(chosen)) == [9, 10, 11]
    assert bound == "size"


def test_what_has_waited_too_long_is_not_passed_over() -> None:
    policy = Batch(max_size=2, cost=padded, max_age=1.0)
    window = requests(policy, [10, 90, 11])
    window[2].submitted = 1.5
    chosen, _ = choose(policy, Pricing(padded), window, 2.0, ServiceTime())
    assert values_of(chosen) == [10, 90]


def test_a_batch_stays_within_its_deadlines() -> None:
    policy = Batch(max_size=64, learn=False)
    chosen, bound = choose(policy, Pricing(None), requests(policy, [1] * 64, deadline=1.0), 0.0, known(0.1, 0.05))
    assert bound == "deadline"
    assert len(chosen) == 18  # 0.1 + 18 x 0.05 = 1.0


@given(
    deadlines=st.lists(st.none() | st.floats(0.0, 2.0), min_size=1, max_size=20),
    a=st.floats(0.0, 1.0),
    b=st.floats(0.0, 0.2),
    size=st.integers(1, 12),
    most=st.just(math.inf) | st.integers(1, 12),
    learn=st.booleans(),
)
def test_without_a_cost_the_largest_batch_goes_that_is_in_time(
    deadlines: list[float | None], a: float, b: float, size: int, most: float, learn: bool
) -> None:
    policy, time = Batch(max_size=size, learn=learn), known(a, b)
    window = [Request(deadline=deadline) for deadline in deadlines]
    chosen, bound = choose(policy, Pricing(None), window, 0.0, time, most)
    fitting = [n for n in range(1, int(min(len(window), size, most)) + 1) if n == 1 or _in_time(window[:n], time)]
    assert chosen == window[: fitting[-1]]
    assert bound != "size" or len(chosen) == size


def _in_time(batch: list[Request], time: ServiceTime) -> bool:
    return all(request.deadline is None or time.seconds(len(batch)) <= request.deadline for request in batch)


def test_the_size_is_learned() -> None:
    """With a large fixed part everything goes together; when padding costs more than that, alike goes alone."""
    policy = Batch(max_size=8, cost=padded)
    together, _ = choose(policy, Pricing(padded), requests(policy, [10, 10, 12, 13]), 0.0, known(1.0, 0.001))
    assert len(together) == 4
    apart, bound = choose(policy, Pricing(padded), requests(policy, [1, 1, 1, 200]), 0.0, known(0.001, 0.01))
    assert values_of(apart) == [1, 1, 1]
    assert bound == "learned"


def test_the_fit_finds_a_and_b_and_never_predicts_less_than_nothing() -> None:
    time = known(0.02, 0.003)
    assert (time.a, time.b) == (pytest.approx(0.02), pytest.approx(0.003))
    falling = ServiceTime()
    for cost, seconds in ((1.0, 1.0), (2.0, 0.5), (3.0, 0.1)):
        falling.add(cost, seconds)
    assert falling.a >= 0 and falling.b >= 0
    same = ServiceTime()
    for _ in range(5):
        same.add(8.0, 0.05)
    assert same.seconds(8.0) == pytest.approx(0.05)


def test_one_bad_item_fails_alone() -> None:
    stand = Stand(1, batch=Batch(max_size=3, max_wait=1.0))
    calls = [stand.submit() for _ in range(3)]
    work = stand.started.pop()
    stand.do(stand.scheduler.finish(work, 0.1, [None, ValueError("bad"), None]))
    assert [call.outcome for call in calls] == ["ok", "failed", "ok"]


def test_what_was_too_much_for_memory_is_not_tried_again() -> None:
    policy = Batch(max_size=8, max_wait=0.0, cost=lambda items: float(sum(items)), learn=False)
    station = Station(StationOptions(name="s", replicas=1, batch=policy))
    station.outgrown(requests(policy, [10, 10, 10, 10]))
    station.outgrown(requests(policy, [30, 30]))  # a dearer one says nothing new
    assert station.max_cost == 20.0
    window = requests(policy, [9, 9, 9, 9])
    chosen, bound = choose(policy, Pricing(policy.cost), window, 0.0, ServiceTime(), station.max_cost)
    assert len(chosen) == 2 and bound == "cost"
    assert release(policy, 3, 27.0, 0.0, 9.0, 0.0, ServiceTime(), station.max_cost)[0] == "cost"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(1, 400), st.sampled_from([sum, padded]))
def test_a_memory_that_is_too_small_is_met_a_few_times_and_then_kept_to(values: list[int], room: int, cost: Any) -> None:
    """However much fits in truth: each batch that does not is halved until it does, and the bound is halved for good."""
    policy = Batch(max_size=32, max_wait=0.0, cost=lambda items: float(cost(items)), learn=False)
    station = Station(StationOptions(name="s", replicas=1, batch=policy))
    left, failed = requests(policy, values), 0
    while left:
        bound = station.max_cost
        chosen, _ = choose(policy, Pricing(policy.cost), left, 0.0, ServiceTime(), bound)
        whole = float(cost(values_of(chosen)))
        assert len(chosen) == 1 or whole <= bound
        trial, answered = Trial(len(chosen)), 0
        while (part := trial.part()) is not None:
            run = chosen[part.start : part.stop]
            if float(cost(values_of(run))) > room and len(run) > 1:
                station.outgrown(run)
                assert trial.halve()
            else:
                trial.answered([True] * len(run))
                answered += len(run)
        assert trial.results == [True] * len(chosen) and answered == len(chosen)
        if whole > room and len(chosen) > 1:
            failed += 1
            assert station.max_cost <= whole / 2
        left = [request for request in left if request not in chosen]
    assert failed <= math.log2(32 * 50) + 1
