"""What limits promise: the gap and the rate of starts, and the climb and fall of AIMD."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand import Stand

from penstock.core.policy.limit import AIMD, Fixed, Rate
from penstock.errors import ConfigError, DeadlineInfeasible, Overloaded


@given(
    per_second=st.sampled_from([0.5, 3.0, 10.0, 1000.0]),
    burst=st.integers(1, 5),
    gap=st.sampled_from([0.0, 1e-4, 5e-4]),
    arrivals=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60),
)
def test_no_two_starts_are_closer_than_the_gap(per_second: float, burst: int, gap: float, arrivals: list[float]) -> None:
    stand = Stand(None, limits=(Rate(per_second, burst=burst, min_gap=gap),), start_timeout=1e6, progress_timeout=1e9)
    calls = []
    for at in sorted(arrivals):
        stand.to(at)
        calls.append(stand.submit())
    stand.to(1000.0)
    starts = sorted(call.started for call in calls)
    assert all(call.work is not None for call in calls), "somebody never started"
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(starts))
    assert all(b - a >= 1 / per_second - 1e-9 for a, b in zip(starts, starts[burst:], strict=False))


@pytest.mark.parametrize("replicas", [None, 4])
def test_what_a_rate_cannot_start_in_time_is_refused_at_once(replicas: int | None) -> None:
    stand = Stand(replicas, limits=(Rate(per_second=2.0),), start_timeout=10.0)
    assert stand.submit().work is not None
    stand.finish(0.01)
    assert isinstance(stand.errors[stand.submit(deadline=0.4)], DeadlineInfeasible)
    calls = [stand.submit() for _ in range(40)]
    refused = [stand.errors[call] for call in calls if call in stand.errors]
    assert len(refused) == 20 and all(isinstance(error, Overloaded) for error in refused)
    assert all(error.retry_after for error in refused)


def test_a_gap_that_forbids_the_burst_is_refused() -> None:
    with pytest.raises(ConfigError, match="burst can never happen"):
        Rate(per_second=10.0, burst=2, min_gap=0.2)


def test_fixed_bounds_what_is_in_flight_and_ends_wake_who_waits() -> None:
    stand = Stand(None, limits=(Fixed(2),))
    for _ in range(5):
        stand.submit()
    assert (len(stand.started), len(stand.station.waiting)) == (2, 3)
    stand.finish(1.0)
    assert (len(stand.started), len(stand.station.waiting)) == (2, 2)


def test_a_staged_batch_keeps_its_place_within_a_fixed_limit() -> None:
    from penstock.core.policy.batch import Batch

    stand = Stand(2, limits=(Fixed(1),), batch=Batch(max_size=2, max_wait=0.0), stage=True)
    for _ in range(8):
        stand.submit()
    first = stand.started.pop(0)
    staged = stand.station.replicas[first.replica].staged
    assert staged is not None
    stand.do(stand.scheduler.finish(first, 1.0))
    assert not stand.started, "another replica took the place of the staged batch"
    stand.do(stand.scheduler.taken(staged, 1.0))
    assert stand.station.in_flight == 1


def test_aimd_is_open_until_deadlines_are_missed_then_falls_and_climbs() -> None:
    state = AIMD(window=1.0, backoff=0.5, tolerance=0.1).state()
    now = 0.0

    def window(misses: int, ends: int, in_flight: int) -> None:
        nonlocal now
        for n in range(ends):
            state.ended(in_flight - n, n < misses, now)
        now += 1.001
        state.ended(in_flight - ends, False, now)

    window(0, 10, 100)
    assert state.ready_at(1_000_000, now) == now  # nobody missed anything: open
    window(9, 10, 100)
    assert state.n == 50
    window(0, 10, 50)
    assert state.n == 51
    window(0, 10, 3)
    assert state.n == 51  # what is not used is not raised
    for _ in range(20):
        window(10, 10, int(state.n))
    assert state.n == 1
    assert state.ready_at(0, now) == now  # one is always let by
