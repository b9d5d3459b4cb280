"""Retries: only what is declared safe, within the budget, never after the first output, never past the deadline."""

from __future__ import annotations

from random import Random

from stand import Stand

from penstock.core.policy.retry import Retry
from penstock.core.request import BACKOFF
from penstock.errors import WorkerLost


def lost() -> WorkerLost:
    return WorkerLost("gone")


def test_a_lost_call_runs_again_and_ends_once() -> None:
    stand = Stand(1, safe=True, retry=Retry(base=0.1))
    call = stand.submit()
    stand.finish(0.1, lost())
    assert call.state == BACKOFF
    stand.to(stand.now + 0.2)
    stand.finish(0.1)
    assert (call.outcome, call.attempts) == ("ok", 1)
    assert stand.station.counts == {"ok": 1}


def test_attempts_end() -> None:
    stand = Stand(1, safe=True, retry=Retry(attempts=3, base=0.1))
    call = stand.submit()
    for _ in range(3):
        assert not call.outcome
        stand.finish(0.1, lost())
        stand.to(stand.now + 1.0)
    assert call.outcome == "failed"


def test_what_is_not_safe_or_not_of_the_kind_or_has_begun_to_answer_is_not_run_again() -> None:
    for safe, error, begun in ((False, lost(), False), (True, ValueError("a bug"), False), (True, lost(), True)):
        stand = Stand(1, safe=safe, retry=Retry(), streams=True)
        call = stand.submit()
        if begun:
            stand.scheduler.progress(call, stand.now)
        stand.finish(0.1, error)
        assert call.outcome == "failed"


def test_no_retry_past_the_deadline() -> None:
    stand = Stand(1, safe=True, retry=Retry(base=50.0, cap=50.0))
    stand.scheduler.random = Random(1)
    call = stand.submit(deadline=1.0)
    stand.finish(0.1, lost())
    assert call.outcome == "failed"


def test_the_budget_bounds_a_storm_of_retries() -> None:
    stand = Stand(1, safe=True, retry=Retry(attempts=100, base=0.0, reserve=5.0, budget=0.1))
    calls = [stand.submit() for _ in range(200)]
    starts = 0
    while stand.started:
        starts += 1
        stand.finish(0.01, lost())
        stand.to(stand.now)
    assert all(call.outcome == "failed" for call in calls)
    assert 200 + 20 <= starts <= 200 + 5 + 0.1 * 200


def test_full_jitter() -> None:
    policy, random = Retry(base=0.1, cap=1.0), Random(3)
    for attempt, most in ((1, 0.1), (2, 0.2), (3, 0.4), (9, 1.0)):
        delays = [policy.delay(attempt, random) for _ in range(500)]
        assert 0.0 <= min(delays) < 0.05 * most
        assert 0.95 * most < max(delays) <= most
