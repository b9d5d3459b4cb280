"""Who is let in: what can never fit, what does not fit now, what would be in vain; and who always is."""

from __future__ import annotations

import pytest
from stand import Stand

from penstock.core.policy.admit import Queue
from penstock.core.policy.batch import Batch
from penstock.core.policy.limit import Fixed
from penstock.core.pool import LockOrder, Pool
from penstock.core.request import RUNNING
from penstock.core.station import StationOptions
from penstock.errors import (
    ConfigError,
    DeadlineExceeded,
    DeadlineInfeasible,
    DeadlockRefused,
    Overloaded,
    QueueFull,
    ShuttingDown,
    TooLarge,
)


def test_what_can_never_fit_is_too_large_even_when_idle() -> None:
    stand = Stand(1, queue=Queue(size_bytes=100), batch=Batch(cost=sum, max_cost=10.0))
    assert isinstance(stand.errors[stand.submit(size=101, value=1)], TooLarge)
    assert isinstance(stand.errors[stand.submit(cost=11.0, value=11)], TooLarge)


def test_a_full_queue_says_when_to_come_back() -> None:
    stand = Stand(1, queue=Queue(items=2, size_bytes=100))
    stand.submit()
    for _ in range(2):
        stand.submit(size=40)
    error = stand.errors[stand.submit()]
    assert isinstance(error, QueueFull)
    assert error.status == 429
    assert error.retry_after is not None and error.retry_after > 0
    stand.finish(0.1)
    assert isinstance(stand.errors[stand.submit(size=61)], QueueFull)  # bytes
    assert stand.submit(size=60) not in stand.errors


def test_an_expired_call_is_never_started() -> None:
    stand = Stand(1)
    stand.now = 5.0
    assert isinstance(stand.errors[stand.submit(deadline=5.0)], DeadlineExceeded)
    stand.submit()
    waiting = stand.submit(deadline=6.0)
    stand.to(6.0)
    assert waiting.outcome == "expired"
    stand.finish(1.0)
    assert not stand.started


def test_a_deadline_that_cannot_be_kept_is_refused_early() -> None:
    stand = Stand(1)
    stand.know(1.0)
    stand.submit()
    error = stand.errors[stand.submit(deadline=stand.now + 1.5)]
    assert isinstance(error, DeadlineInfeasible)
    assert stand.submit(deadline=stand.now + 2.5) not in stand.errors


@pytest.mark.parametrize("replicas", [None, 1, 3])
def test_an_idle_station_starts_any_unexpired_call_whatever_it_predicts(replicas: int | None) -> None:
    stand = Stand(replicas)
    stand.know(100.0, times=70)
    assert stand.submit(deadline=stand.now + 0.001).state == RUNNING


def test_a_longer_wait_than_max_wait_is_overload() -> None:
    stand = Stand(1, queue=Queue(max_wait=3.0))
    stand.know(1.0)
    calls = [stand.submit() for _ in range(6)]
    refused = [call for call in calls if call in stand.errors]
    assert 1 <= len(refused) <= 3
    assert all(isinstance(stand.errors[call], Overloaded) for call in refused)


def test_inner_calls_are_not_refused_on_predictions_but_by_bounds() -> None:
    stand = Stand(1, queue=Queue(items=2, max_wait=0.5))
    stand.know(1.0)
    stand.submit()
    assert isinstance(stand.errors[stand.submit()], Overloaded)
    assert stand.submit(root=False, deadline=stand.now + 0.1) not in stand.errors
    stand.submit(root=False)
    assert isinstance(stand.errors[stand.submit(root=False)], QueueFull)


def test_after_drain_nothing_is_taken_and_what_waits_still_runs() -> None:
    stand = Stand(1)
    stand.submit()
    waiting = stand.submit()
    stand.do(stand.scheduler.drain(stand.now))
    assert isinstance(stand.errors[stand.submit()], ShuttingDown)
    stand.finish(0.1)
    stand.finish(0.1)
    assert waiting.outcome == "ok"


def test_a_circle_of_waiting_is_refused_with_its_chain() -> None:
    stand = Stand(1)
    fuse = stand.add("fuse", None, limits=(Fixed(1),))
    memory = stand.scheduler.pool(Pool("memory", 2.0))
    act = stand.add("act", 1, needs=((memory, 1.0),))
    assert stand.submit(fuse, held=("model's replicas",), root=False) not in stand.errors
    assert stand.submit(act, held=("model's replicas", "fuse's limit"), root=False) not in stand.errors
    error = stand.errors[stand.submit(stand.station, held=("memory",), root=False)]
    assert isinstance(error, DeadlockRefused)
    assert "memory -> model's replicas -> memory" in str(error)
    assert isinstance(stand.errors[stand.submit(fuse, held=("fuse's limit",), root=False)], DeadlockRefused)  # itself


def circle(*calls: tuple[tuple[str, ...], tuple[str, ...]]) -> list[str] | None:
    """The chain that the last of these (held, wanted) is told; the ones before it are allowed."""
    locks = LockOrder()
    assert [locks.cycle(*call) for call in calls[:-1]] == [None] * (len(calls) - 1)
    return locks.cycle(*calls[-1])


def test_the_chain_names_all_that_is_held_within_the_circle() -> None:
    assert circle((("a",), ("b",)), (("a", "b"), ("c",)), (("a", "b", "c"), ("a",))) == ["a", "b", "c", "a"]
    assert circle((("a",), ("b",)), (("a", "b"), ("b",))) == ["b", "b"]  # what is held around the circle is not of it
    assert circle((("its replicas", "its limit"), ("its replicas", "its limit"))) == ["its replicas", "its replicas"]
    # part of it was seen in other calls
    assert circle((("c",), ("d",)), (("d",), ("a",)), (("a",), ("b",)), (("a", "b"), ("c",))) == ["a", "b", "c", "d", "a"]
    assert circle((("a",), ("b",)), (("a", "b", "b"), ("c",)), (("a", "b", "b", "c"), ("a",))) == ["a", "b", "c", "a"]


def test_contradictions_are_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="cannot hold one batch"):
        StationOptions("model", replicas=1, queue=Queue(items=4), batch=Batch(max_size=8))
    with pytest.raises(ConfigError, match="every lone call would time out"):
        StationOptions("model", replicas=1, batch=Batch(max_wait=1.0), start_timeout=0.5)
    with pytest.raises(ConfigError, match="say what a batch costs"):
        Batch(max_cost=10.0)
    with pytest.raises(ConfigError, match="max_age >= max_wait"):
        Batch(max_wait=0.5, max_age=0.1)


def test_a_refusal_for_want_of_patience_holds_for_a_moment_and_for_like_calls_only() -> None:
    stand = Stand(1)
    stand.know(0.1)
    book = stand.station.patience
    assert book is not None
    for n in range(200):  # callers of one leave after 0.45 s, of the other after 0.65 s
        for tenant in ("a", "b"):
            book.exit(tenant, 0.45 if tenant == "a" else 0.65, True, stand.now + n / 100)
    stand.to(stand.now + 3.0)
    stand.submit(tenant="a")
    waiting = [stand.submit(tenant="a") for _ in range(2)]
    first, second = (stand.errors[stand.submit(tenant="a")] for _ in range(2))
    assert isinstance(first, Overloaded) and isinstance(second, Overloaded)
    assert first is not second
    assert (str(first), first.retry_after) == (str(second), second.retry_after)
    assert stand.submit(tenant="b") not in stand.errors  # whose callers wait longer
    stand.now += 0.0005
    assert stand.submit(tenant="a", priority=-1) not in stand.errors  # which goes first
    assert stand.submit(tenant="a") in stand.errors
    for request in [*waiting, *list(stand.station.waiting)[-2:]]:
        stand.do(stand.scheduler.cancel(request, stand.now))
    assert stand.submit(tenant="a") not in stand.errors  # behind fewer
