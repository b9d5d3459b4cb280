"""What orders promise: fair shares within a bound, ageing that ends every wait, and the newest call of a key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from stand import Stand

from penstock.core.policy.order import EarliestDeadline, FairShare, Fifo, Priority
from penstock.core.request import Request
from penstock.errors import Superseded


@given(
    costs=st.lists(st.sampled_from([1.0, 2.0, 5.0, 9.0]), min_size=20, max_size=60),
    weight=st.sampled_from([0.5, 1.0, 4.0]),
    late=st.integers(0, 15),
)
def test_two_backlogged_tenants_stay_within_the_bound(costs: list[float], weight: float, late: int) -> None:
    """VTC: |W_a - W_b| <= 2 x max(cost / weight), whenever the second one comes, whatever the first has had."""
    queue = FairShare(weights={"b": weight}).queue()
    for n, cost in enumerate(costs):
        request = Request(tenant="a", cost=cost)
        request.seq = n
        queue.push(request, 0.0)
    for _ in range(late):
        queue.pop(0.0)
    for n, cost in enumerate(costs):
        request = Request(tenant="b", cost=cost)
        request.seq = 1000 + n
        queue.push(request, 0.0)
    left = {"a": len(costs) - late, "b": len(costs)}
    served = {"a": 0.0, "b": 0.0}
    bound = 2 * max(max(costs), max(costs) / weight)
    while min(left.values()) > 0:
        request = queue.pop(0.0)
        left[request.tenant] -= 1
        served[request.tenant] += request.cost / (weight if request.tenant == "b" else 1.0)
        assert abs(served["a"] - served["b"]) <= bound + 1e-9


def test_idling_earns_no_credit() -> None:
    """A tenant that was away for a thousand calls gets half of the service, not all of it."""
    queue = FairShare(then=Fifo()).queue()
    number = 0

    def push(tenant: str) -> None:
        nonlocal number
        number += 1
        request = Request(tenant=tenant)
        request.seq = number
        queue.push(request, 0.0)

    for _ in range(1000):
        push("busy")
        queue.pop(0.0)
    for _ in range(20):
        push("busy")
        push("back")
    first = [queue.pop(0.0).tenant for _ in range(20)]
    assert 9 <= first.count("back") <= 11


def test_unpop_and_pop_leave_the_account_as_it_was() -> None:
    queue = FairShare().queue()
    for n, tenant in enumerate("aabb"):
        request = Request(tenant=tenant, cost=3.0)
        request.seq = n
        queue.push(request, 0.0)
    before = [queue.peek(0.0).tenant]
    request = queue.pop(0.0)
    queue.unpop(request)
    assert [queue.peek(0.0).tenant] == before
    assert len(queue) == 4


def test_what_was_looked_at_and_put_back_costs_a_new_tenant_nothing() -> None:
    """A batch looks at more than it takes. Who comes then stands beside those who wait, not behind all that was seen."""
    queue = FairShare(then=Fifo()).queue()
    number = 0

    def push(tenant: str) -> None:
        nonlocal number
        number += 1
        request = Request(tenant=tenant)
        request.seq = number
        queue.push(request, 0.0)

    for tenant in "ab" * 20:
        push(tenant)
    for request in reversed([queue.pop(0.0) for _ in range(20)]):
        queue.unpop(request)
    for _ in range(10):
        push("new")
    assert [queue.pop(0.0).tenant for _ in range(9)].count("new") == 3


def test_ageing_never_starves() -> None:
    """A call of the last band starts within bands x age seconds, plus its turn, under a flood of urgent ones."""
    stand = Stand(1, order=Priority(age=1.0, then=Fifo()), limits=(), progress_timeout=1e9)
    stand.submit()
    patient = stand.submit(priority=3)
    for _ in range(100):
        for _ in range(2):
            stand.submit(priority=0)
        stand.finish(0.1)
        stand.to(stand.now)
        if patient.work is not None:
            break
    assert patient.work is not None, "starved"
    assert patient.started <= 3 * 1.0 + 100 * 0.1
    assert patient.started >= 3 * 1.0 - 1e-9  # and not before: a band is worth `age` seconds


def test_a_band_is_strict_before_it_ages() -> None:
    stand = Stand(1, order=Priority(age=30.0, then=Fifo()))
    stand.submit()
    later, sooner = stand.submit(priority=2), stand.submit(priority=1)
    stand.finish(0.1)
    assert sooner.work is not None
    assert later.work is None


def test_earliest_deadline_first_and_no_deadline_does_not_starve() -> None:
    stand = Stand(1, order=EarliestDeadline(horizon=10.0))
    stand.submit()
    none, late, soon = stand.submit(), stand.submit(deadline=20.0), stand.submit(deadline=5.0)
    order = []
    for _ in range(3):
        stand.finish(0.01)
        order.append(stand.started[0].requests[0])
    assert order == [soon, none, late]


def test_latest_supersedes_what_is_queued_and_leaves_alone_what_runs() -> None:
    stand = Stand(1)
    running = stand.submit(latest="camera")
    old = stand.submit(latest="camera")
    other = stand.submit(latest="arm")
    new = stand.submit(latest="camera")
    assert running.work is not None
    assert isinstance(stand.errors.pop(old), Superseded)
    assert not stand.errors
    stand.finish(0.1)
    stand.finish(0.1)
    assert other.outcome == "ok"
    assert new.work is not None
