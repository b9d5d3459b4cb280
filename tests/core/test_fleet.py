"""The breakers of a fleet: who is ejected, for how long, how it comes back, and that not all of them can be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.fleet import EJECTED, SERVING, TRIED, UNHEALTHY, Fleet
from penstock.core.policy.breaker import Breaker
from penstock.errors import ConfigError


def fleet(count: int = 4, **options: Any) -> Fleet:
    return Fleet(count, Breaker(**options))


def states(of: Fleet) -> list[str]:
    return [member.shown for member in of.members]


def fail(of: Fleet, index: int, times: int, now: float = 0.0) -> list[Any]:
    return [change for _ in range(times) for change in of.failed(index, now, "500", now)]


def serve(of: Fleet, index: int, seconds: float, times: int, now: float = 0.0) -> list[Any]:
    """One call after the other."""
    begins = [now + 1.01 * n * seconds for n in range(times)]
    return [change for begin in begins for change in of.answered(index, begin, begin + seconds)]


def test_five_failures_in_a_row_eject_and_one_answer_between_them_does_not() -> None:
    of = fleet()
    assert fail(of, 0, 4) == [] and serve(of, 0, 0.1, 1) == [] and fail(of, 0, 4) == []
    (change,) = fail(of, 0, 1)
    assert (change.member, change.state) == (0, EJECTED)
    assert "5 calls in a row failed" in change.why and "500" in change.why
    assert of.slots(0, 32) == 0 and of.slots(1, 32) == 32


def test_a_stream_that_breaks_off_is_a_failure_although_it_had_begun() -> None:
    of = fleet()
    for _ in range(5):
        of.answered(0, 0.0, 0.1, whole=False)
        changes = of.failed(0, 0.0, "it broke off", 1.0)
    assert [change.state for change in changes] == [EJECTED]
    of = fleet()
    for _ in range(5):
        of.answered(0, 0.0, 0.1, whole=False)
        of.completed(0, 0.0)
        assert of.failed(0, 0.0, "it broke off", 1.0) == ()


def test_a_slow_member_is_ejected_when_half_of_its_window_was_slow() -> None:
    of = fleet()
    for index in range(4):
        assert serve(of, index, 0.02, 20) == []
    assert serve(of, 3, 0.2, 9) == []
    changes = serve(of, 3, 0.2, 3, 9.0)
    assert [(c.member, c.state) for c in changes] == [(3, EJECTED)]
    assert "0.2 s" in changes[0].why and "others take 0.02 s" in changes[0].why


def test_calls_that_share_an_instant_have_one_cause_and_it_may_be_ours() -> None:
    of = fleet()
    for index in range(4):
        serve(of, index, 0.02, 20)
    for n in range(20):  # our own process stood still for a second
        assert of.answered(0, 1.0 + n / 1000, 2.0 + n / 1000) == ()
    assert serve(of, 0, 0.02, 20, 2.1) == []
    for n in range(8):
        assert of.failed(1, 1.0 + n / 1000, "no answer", 2.0 + n / 1000, late=True) == ()
    assert [c.state for c in of.failed(1, 2.1, "no answer", 3.0, late=True)] == [EJECTED]
    for n in range(9):
        of.answered(2, 1.0 + n / 1000, 2.0 + n / 1000)
    assert [c.state for c in serve(of, 2, 0.2, 3, 2.1)] == [EJECTED]


@pytest.mark.parametrize(("seconds", "ejected"), [(0.059, False), (0.061, True)])
def test_slow_is_three_times_the_others(seconds: float, ejected: bool) -> None:
    of = fleet()
    for index in range(3):
        serve(of, index, 0.02, 20)
    assert bool(serve(of, 3, seconds, 20)) is ejected


def test_who_is_alone_or_fast_enough_or_among_the_slow_is_not_slow() -> None:
    alone = fleet(1)
    assert serve(alone, 0, 10.0, 100) == []
    tiny = fleet()
    for index in range(3):
        serve(tiny, index, 0.0002, 20)
    assert serve(tiny, 3, 0.004, 40) == []  # twenty times as long, and yet nothing
    many = fleet()
    for index in (0, 1, 2):
        serve(many, index, 1.0, 20)
    assert serve(many, 3, 0.1, 20) == [] and serve(many, 0, 1.0, 20) == []  # most are like that


def test_ejections_grow_and_a_trial_is_one_call_at_a_time() -> None:
    of = fleet(eject=5.0, longest=30.0)
    now, spans = 0.0, []
    fail(of, 0, 5, now)
    for _ in range(5):
        spans.append(of.wake_at - now)
        assert of.tick(of.wake_at - 0.001) == []
        now = of.wake_at
        assert [c.state for c in of.tick(now)] == [TRIED] and of.slots(0, 32) == 1
        assert [c.state for c in of.failed(0, now, "500", now)] == [EJECTED]
    assert spans == [5.0, 10.0, 20.0, 30.0, 30.0]
    now = of.wake_at
    of.tick(now)
    assert [len(of.answered(0, now, now + 0.01)) for _ in range(3)] == [0, 0, 1]
    assert states(of)[0] == SERVING and of.slots(0, 32) == 32
    fail(of, 0, 5, now + 1.0)
    assert of.wake_at == now + 31.0  # it was not well for long
    of = fleet(eject=5.0)
    fail(of, 0, 5, 0.0)
    of.tick(5.0)
    serve(of, 0, 0.01, 3, 5.0)
    fail(of, 0, 5, 100.0)
    assert of.wake_at == 105.0


def test_a_slow_trial_is_a_bad_one() -> None:
    of = fleet()
    for index in range(4):
        serve(of, index, 0.02, 20)
    fail(of, 0, 5, 1.0)
    of.tick(10.0)
    serve(of, 0, 0.02, 2, 10.0)
    assert [c.state for c in of.answered(0, 10.1, 10.3)] == [EJECTED]


def test_what_began_before_a_change_says_nothing() -> None:
    of = fleet()
    fail(of, 0, 5, 1.0)
    assert of.answered(0, 0.5, 2.0) == () == of.failed(0, 0.5, "500", 2.0)
    of.tick(6.0)
    assert of.failed(0, 5.9, "500", 6.5) == () and states(of)[0] == TRIED
    assert [c.state for c in of.failed(0, 6.0, "500", 6.5)] == [EJECTED]


@pytest.mark.parametrize(
    ("count", "share", "most"), [(1, 0.5, 0), (2, 0.5, 1), (3, 0.5, 1), (4, 0.5, 2), (10, 0.1, 1), (4, 0.0, 0)]
)
def test_the_share_that_may_be_ejected(count: int, share: float, most: int) -> None:
    of = fleet(count, share=share)
    for index in range(count):
        fail(of, index, 50)
    assert states(of).count(EJECTED) == most


def test_health_checks() -> None:
    of = fleet(4)
    assert of.checked(0, "refused", 0.0) == () and of.checked(0, "", 1.0) == ()
    assert of.checked(0, "refused", 2.0) == ()
    assert [c.state for c in of.checked(0, "refused", 3.0)] == [UNHEALTHY] and of.slots(0, 8) == 0
    assert of.checked(0, "refused", 4.0) == ()
    assert [c.state for c in of.checked(0, "", 5.0)] == [SERVING] and of.slots(0, 8) == 8
    assert [c.state for c in of.checked(1, "refused", 0.0, first=True)] == [UNHEALTHY]
    of = fleet(2)
    for index in (0, 1):
        of.checked(index, "refused", 0.0, first=True)
    assert states(of) == [UNHEALTHY, UNHEALTHY]  # nothing is gained by calling what is not there


def test_when_more_are_unhealthy_an_ejected_one_is_tried_before_its_time() -> None:
    of = fleet(4)
    fail(of, 0, 5, 0.0)
    fail(of, 1, 5, 1.0)
    changes = of.checked(2, "refused", 2.0, first=True)
    assert [(c.member, c.state) for c in changes] == [(2, UNHEALTHY), (0, TRIED)]
    assert fail(of, 0, 3, 2.0) == [], "too many are out already"
    assert states(of) == [TRIED, EJECTED, UNHEALTHY, SERVING]


def test_wrong_breakers_are_refused() -> None:
    for options in ({"failures": 0}, {"slow": 1.0}, {"eject": 0.0}, {"eject": 10.0, "longest": 5.0}, {"share": 1.0}):
        with pytest.raises(ConfigError):
            Breaker(**options)  # type: ignore[arg-type]


EVENTS = st.tuples(
    st.sampled_from(["answered", "failed", "well", "unwell", "tick"]),
    st.integers(0, 5),
    st.floats(0.0, 2.0),
    st.floats(0.0, 3.0),
)


@given(st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.34, 0.5, 0.9]), st.lists(EVENTS, max_size=200), st.integers(1, 4))
def test_laws(count: int, share: float, events: list[tuple[str, int, float, float]], failures: int) -> None:
    """Whatever happens: the share is kept, states and slots agree, changes are told, and timers are armed."""
    of = fleet(count, share=share, failures=failures, window=4, eject=1.0, trials=2)
    now, known = 0.0, states(of)
    for what, index, seconds, passed in events:
        now += passed
        index %= count
        if what == "answered":
            changes = of.answered(index, now - seconds, now)
        elif what == "failed":
            changes = of.failed(index, now - seconds, "500", now)
        elif what == "tick":
            changes = of.tick(now)
            assert of.wake_at > now, "an ejection is over and was not ended"
        else:
            changes = of.checked(index, "refused" if what == "unwell" else "", now)
        for change in changes:
            known[change.member] = of.members[change.member].shown
        assert known == states(of), "a change was not told"
        ejected = [m for m in of.members if m.state is EJECTED and m.healthy]
        assert len(ejected) <= of.most
        assert not ejected or len(ejected) + states(of).count(UNHEALTHY) <= of.most
        for member in of.members:
            slots = of.slots(member.index, 8)
            assert slots == {SERVING: 8, TRIED: 1, EJECTED: 0, UNHEALTHY: 0}[member.shown]
            assert (member.state is EJECTED) == (member.until < float("inf"))
        assert of.wake_at == min((m.until for m in of.members), default=float("inf"))
