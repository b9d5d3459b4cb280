"""A tenant whose callers always hang up: refused while others wait, tried now and then, and believed at once when it stays."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand import Stand

from penstock.core.hangups import RUN, SHARE, HangUps
from penstock.core.request import Request
from penstock.errors import Overloaded

START = 0.1


def known() -> HangUps:
    hangups = HangUps(lambda: START)
    for _ in range(RUN):
        hangups.left("hasty", 0.01)
    return hangups


def call(tenant: str = "hasty", seq: int = 1) -> Request:
    request = Request(tenant=tenant)
    request.seq = seq
    return request


def test_one_who_stays_is_enough_to_end_a_run() -> None:
    for n in range(5 * RUN):
        hangups = HangUps(lambda: START)
        for m in range(n % RUN):
            hangups.left("t", 0.01)
            assert "t" not in hangups.tenants, m
        if n % 2:
            hangups.left("t", START)
        else:
            hangups.answered("t", 0.001, math.inf)
        for _ in range(RUN - 1):
            hangups.left("t", 0.01)
        assert not hangups.tenants


def test_leaving_later_than_a_start_takes_is_no_hanging_up() -> None:
    hangups = HangUps(lambda: START)
    for _ in range(10 * RUN):
        hangups.left("t", START)
    assert not hangups.tenants


def test_refusals_count_if_the_callers_are_believed_to_wait_less_than_two_starts() -> None:
    hangups = HangUps(lambda: START)
    for _ in range(RUN):
        hangups.refused("stays", 2 * START)
        hangups.refused("goes", 1.9 * START)
    assert list(hangups.tenants) == ["goes"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["left", "refused", "answered", "comes", "waits"]),
            st.sampled_from(["t", "t", "t", "u"]),
            st.floats(0.0, 0.5),
        ),
        max_size=200,
    ),
    st.booleans(),
)
def test_a_tenant_takes_nothing_from_itself(steps: list[tuple[str, str, float]], alone: bool) -> None:
    """Whatever happened: refused is only who is known, and only within a spell of another tenant's having to wait."""
    hangups, now = HangUps(lambda: START), 0.0
    for _ in range(RUN - 2):
        hangups.left("t", 0.0)
    waited: dict[str, float] = {}
    for what, tenant, gap in steps:
        now += gap
        tenant = "t" if alone else tenant
        if what == "left":
            hangups.left(tenant, gap)
        elif what == "refused":
            hangups.refused(tenant, gap)
        elif what == "answered":
            hangups.answered(tenant, gap, math.inf)
        else:
            was_known = tenant in hangups.tenants
            if hangups.refuses(call(tenant), now, 1, what == "waits"):
                others = [at for other, at in waited.items() if other != tenant]
                assert was_known and others and now < max(others) + START / SHARE
            elif what == "waits" and not was_known:
                waited[tenant] = now


def test_nothing_is_refused_while_nobody_else_waits() -> None:
    hangups = known()
    assert not any(hangups.refuses(call(seq=n), n / 1000, 1, waits=True) for n in range(1000))
    assert not any(hangups.tries(call(seq=n)) for n in range(1000))
    hangups.refuses(call("other"), 2.0, 1, waits=False)
    assert not hangups.refuses(call(), 2.0, 1, waits=True)


@pytest.mark.parametrize("servers", [1, 16])
def test_while_others_wait_one_is_tried_in_a_hundred_starts_of_each_server(servers: int) -> None:
    hangups, tried, step = known(), 0, START / 100
    for n in range(100_000):
        now = n * step
        assert hangups.refuses(call("other"), now, servers, waits=True) == 0.0
        again = hangups.refuses(call(seq=n + 1), now, servers, waits=True)
        assert hangups.tries(call(seq=n + 1)) == (not again)
        assert again <= START / SHARE / servers
        tried += not again
    assert tried == pytest.approx(100_000 * step * servers * SHARE / START, abs=1)


def test_the_first_try_that_outwaits_what_was_believed_makes_the_tenant_like_any_other() -> None:
    for age, shown in ((0.012, True), (0.009, False)):
        hangups = known()
        hangups.refuses(call("other"), 0.0, 1, waits=True)
        assert not hangups.refuses(call(), 0.0, 1, waits=True)
        assert hangups.answered("hasty", age, 0.01) is shown
        for _ in range(RUN):
            hangups.left("hasty", 0.01)
        assert bool(hangups.refuses(call(), 1.0, 1, waits=True)) is not shown, "else its tries would be without number"


def test_who_was_never_tried_shows_nothing_by_an_answer() -> None:
    hangups = known()
    assert not hangups.answered("hasty", 5.0, 0.01)


def test_the_book_is_bounded() -> None:
    hangups = HangUps(lambda: START)
    for n in range(5000):
        for _ in range(RUN):
            hangups.left(f"tenant {n}", 0.01)
        hangups.refuses(call("other"), float(n), 1, waits=True)
        hangups.refuses(call(f"tenant {n}"), float(n), 1, waits=True)
    assert max(map(len, (hangups.runs, hangups.tenants, hangups.tried))) <= 1024


def test_such_a_call_is_refused_while_another_waits_and_told_when_to_come_again() -> None:
    stand = Stand(1)
    stand.know(START)
    stand.submit()
    for _ in range(RUN + 1):
        leaver = stand.submit(tenant="hasty")
        stand.to(stand.now + 0.002)
        stand.do(stand.scheduler.cancel(leaver, stand.now))
    stand.submit(tenant="other")
    assert stand.submit(tenant="hasty") not in stand.errors  # the one that is tried
    refused = stand.submit(tenant="hasty")
    error = stand.errors[refused]
    assert isinstance(error, Overloaded)
    assert error.retry_after == pytest.approx(START / SHARE)
    assert "'hasty'" in str(error)
