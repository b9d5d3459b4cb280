"""Memory budgets: what fits starts, who may pass whom, and what measured peaks and pressure change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand import Stand

from penstock.core.estimate import Correction
from penstock.core.policy.batch import Batch
from penstock.core.policy.limit import Fixed
from penstock.core.policy.order import Fifo
from penstock.core.pool import RECOVERY, Memory, Pool, PoolState
from penstock.core.request import Request, Work
from penstock.core.station import Station, StationOptions
from penstock.errors import ConfigError, TooLarge
from penstock.sim.drive import Drive

MIB = 1 << 20


def total(items: Sequence[float]) -> float:
    return float(sum(items))


class Host(Stand):
    """A stand whose one station, without replicas, takes what each call says of a budget of 100."""

    def __init__(self, capacity: int = 100, bypass: int = 16, replicas: int | None = None, **options: Any) -> None:
        super().__init__(1)
        self.scheduler.bypass = bypass
        self.pool = self.scheduler.pool(Memory("ram", size_bytes=capacity, device="host"))
        self.station = self.add("sized", replicas, needs=((self.pool, total),), limits=(), order=Fifo(), **options)

    def call(self, amount: float, station: Station | None = None) -> Request:
        return self.submit(station, amounts=[amount], value=amount)

    def stop(self, request: Request, after: float = 0.0) -> None:
        self.now += after
        work = request.work
        assert work is not None
        self.started.remove(work)
        self.do(self.scheduler.finish(work, self.now))

    def runs(self, *requests: Request) -> bool:
        return all(request.work is not None and not request.work.stopped for request in requests)


def test_what_fits_starts_and_what_ends_makes_room() -> None:
    host = Host()
    a, b, c = host.call(60), host.call(50), host.call(40)
    assert host.runs(a, c) and not host.runs(b)
    assert host.pool.used == 100
    host.stop(a)
    assert host.runs(b)
    host.stop(b)
    host.stop(c)
    assert host.pool.used == 0 and host.pool.leases == 0


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    host = Host(capacity=1000)
    error = host.errors[host.call(1001)]
    assert isinstance(error, TooLarge)
    for part in ("sized", "1001 bytes", "'ram'", "1000 bytes"):
        assert part in str(error)
    assert host.runs(host.call(1000))


def test_only_so_many_pass_a_large_one_and_then_all_that_is_freed_is_its() -> None:
    host = Host(bypass=3)
    small = [host.call(30) for _ in range(3)]
    large = host.call(90)
    for n in range(3):
        host.stop(small[n], 1.0)
        small.append(host.call(30))
    assert host.runs(*small[3:]), "three may pass"
    late = [host.call(1) for _ in range(5)]
    for n in range(3):
        assert not host.runs(large) and not any(host.runs(each) for each in late), "now they wait for their turn"
        host.stop(small[3 + n], 1.0)
    assert host.runs(large, *late)


def test_other_services_do_not_starve_it_either() -> None:
    host = Host(bypass=2)
    other = host.add("other", None, needs=((host.pool, 30.0),), limits=())
    small = [host.submit(other) for _ in range(3)]
    large = host.call(95)
    passed = []
    tries = 0
    while not host.runs(large) and tries < 30:
        tries += 1
        host.stop(small.pop(0), 1.0)
        one = host.submit(other)
        passed.append(host.runs(one))
        if passed[-1]:
            small.append(one)
    assert host.runs(large)
    assert passed.count(True) == 2


def test_nobody_is_kept_waiting_by_one_who_could_not_start_anyway() -> None:
    """What is kept for a large one is free again when its replica dies, and when its caller leaves."""
    for leaves in (False, True):
        host = Host(bypass=0, replicas=2)
        small = host.add("small", None, needs=((host.pool, 5.0),), limits=())
        first, large = host.call(50), host.call(90)
        waiting = host.submit(small)
        assert host.runs(first) and not host.runs(large) and not host.runs(waiting)
        if leaves:
            host.do(host.scheduler.cancel(large, host.now))
        else:
            host.do(host.scheduler.replica_down(host.station, host.station.free[0], host.now))
        assert host.runs(waiting)


def test_fixed_limits_come_first_and_keep_nothing() -> None:
    host = Host(bypass=0)
    limited = host.add("limited", None, needs=((host.pool, 90.0),), limits=(Fixed(1),))
    first, second = host.submit(limited), host.submit(limited)
    assert host.runs(first) and not host.runs(second)
    assert host.runs(host.call(10)), "the second waits for its limit, not for memory"


def test_two_pools_are_taken_at_once_or_not_at_all() -> None:
    host = Host()
    gpu = host.scheduler.pool(Pool("gpu", 1))
    both = host.add("both", None, needs=((host.pool, total), (gpu, 1.0)), limits=())
    a = host.submit(both, amounts=[60.0, 0.0], value=60.0)
    b = host.submit(both, amounts=[30.0, 0.0], value=30.0)
    assert host.runs(a) and not host.runs(b)
    assert (host.pool.used, gpu.used) == (60, 1)
    host.stop(a)
    assert host.runs(b)


def test_a_nested_call_is_not_kept_waiting_for_what_its_own_caller_holds() -> None:
    """Z waits for P and for Q; W holds P and calls V, which needs Q. Q must not be kept for Z while P is W's."""
    stand = Stand(1)
    stand.scheduler.bypass = 0
    p, q = stand.scheduler.pool(Pool("P", 1)), stand.scheduler.pool(Pool("Q", 2))
    w = stand.add("W", None, needs=((p, 1.0),), limits=())
    v = stand.add("V", None, needs=((q, 1.0),), limits=())
    z = stand.add("Z", None, needs=((p, 1.0), (q, 2.0)), limits=())
    stand.submit(w)
    inside = stand.submit(v, held=w.nodes, root=False)
    blocked = stand.submit(z)
    again = stand.submit(v, held=w.nodes, root=False)
    assert inside.work is not None and again.work is not None and blocked.work is None


def test_two_who_keep_do_not_make_a_circle_with_what_others_hold() -> None:
    """K needs X and Y, L needs Z and W. Who holds Y calls for Z, who holds W for X: neither X nor Z may be kept."""
    stand = Stand(1)
    stand.scheduler.bypass = 0
    x, y, z, w = (stand.scheduler.pool(Pool(name, 2)) for name in "XYZW")
    only = {pool: stand.add(f"only {pool.name}", None, needs=((pool, 1.0),), limits=()) for pool in (x, y, z, w)}
    for held, wanted in ((y, z), (w, x)):
        stand.submit(only[held])
        stand.submit(only[wanted], held=only[held].nodes, root=False)
    for name, pools in (("K", (x, y)), ("L", (z, w))):
        stand.submit(stand.add(name, None, needs=tuple((pool, 2.0) for pool in pools), limits=()))
    assert len(stand.started) == 4 and list(stand.scheduler.line)
    for held, wanted in ((y, z), (w, x)):
        assert stand.submit(only[wanted], held=only[held].nodes, root=False).work is not None
        assert stand.submit(only[held]).work is None, "that one is kept"


def test_what_is_kept_follows_the_calls_that_are_seen_later() -> None:
    """P and Q have no order until a caller that holds P calls for Q: from then on Q is not kept while P has no room."""
    stand = Stand(1)
    stand.scheduler.bypass = 0
    q, p = stand.scheduler.pool(Pool("Q", 2)), stand.scheduler.pool(Pool("P", 1))
    w = stand.add("W", None, needs=((p, 1.0),), limits=())
    v = stand.add("V", None, needs=((q, 1.0),), limits=())
    both = stand.add("both", None, needs=((p, 1.0), (q, 2.0)), limits=())
    stand.submit(w)
    blocked, waits = stand.submit(both), stand.submit(v)
    assert blocked.work is None and waits.work is None
    inner = stand.submit(v, held=w.nodes, root=False)
    assert inner.work is not None
    while stand.started:
        stand.finish(1.0)
    assert blocked.work is not None and waits.work is not None


@pytest.mark.parametrize("bypass", [0, 2])
def test_whatever_calls_whatever_all_of_it_ends(bypass: int) -> None:
    """Calls hold what they have while they call others, as deep as the lock order lets them, and someone always goes on."""
    refused = 0
    for seed in range(150):
        random, stand = Random(seed), Stand(1)
        stand.scheduler.bypass = bypass
        pools = [stand.scheduler.pool(Pool(f"P{n}", 3)) for n in range(4)]
        stations = [
            stand.add(
                f"S{n}",
                random.choice([None, 1, 2]),
                needs=tuple((pool, random.choice([1.0, 3.0, total])) for pool in random.sample(pools, random.randint(1, 3))),
                limits=(),
                start_timeout=1e9,
            )
            for n in range(5)
        ]

        def call(held: tuple[str, ...] = ()) -> Request:
            station, amount = random.choice(stations), float(random.randint(1, 3))  # noqa: B023
            amounts = [amount] * len(station.needs)
            return stand.submit(station, held=held, root=not held, amounts=amounts, value=amount)  # noqa: B023

        calls = [(call(), ()) for _ in range(12)]
        inner: dict[Request, Request] = {}
        left = 60
        while True:
            running = [(r, held) for r, held in calls if r.work in stand.started]
            free = [(r, held) for r, held in running if r not in inner or inner[r].outcome]
            if not free:
                break
            request, held = random.choice(free)
            work = request.work
            assert work is not None
            if left and random.random() < 0.6:
                left -= 1
                everything = (*held, *(node for node in work.station.nodes if node not in held))
                inner[request] = call(everything)
                refused += inner[request] in stand.errors
                calls.append((inner[request], everything))
            else:
                stand.now += 1.0
                stand.started.remove(work)
                stand.do(stand.scheduler.finish(work, stand.now))
        assert not stand.started and all(request.outcome for request, _ in calls), f"seed {seed}: they wait for each other"
    assert refused > 50, "there was little to refuse"


def test_a_higher_priority_does_not_pass_those_of_others_in_the_place_of_another() -> None:
    """r1 waits before r2 of another service; r3 comes last and is more urgent than r1. It may go before r1 or behind r2."""
    host = Host(bypass=0)
    first = host.add("first", None, needs=((host.pool, 40.0),), limits=())
    running = host.call(100)
    r1 = host.submit(first, priority=1)
    r2 = host.call(60)
    r3 = host.submit(first, priority=0)
    host.stop(running)
    assert host.runs(r3, r2) and not host.runs(r1), "one of its station, then the other one's"


def test_callers_who_leave_do_not_cost_their_service_its_place() -> None:
    host = Host(bypass=2)
    large = host.add("large", None, needs=((host.pool, 90.0),), limits=())
    small = [host.call(20) for _ in range(2)]
    waiting = [host.submit(large)]
    for _ in range(2):
        waiting.append(host.submit(large))
        host.do(host.scheduler.cancel(waiting.pop(0), host.now))
        small.append(host.call(1))
    assert host.runs(*small) and not host.runs(host.call(1)), "two have passed"
    for call in small:
        host.stop(call)
    assert host.runs(*waiting)


def test_a_batch_takes_what_is_free_now() -> None:
    host = Host(replicas=1, batch=Batch(max_size=8, max_wait=0.0))
    other = host.add("other", None, needs=((host.pool, 40.0),), limits=())
    block = host.submit(other)
    first = host.call(20)
    calls = [host.call(20) for _ in range(6)]
    host.stop(first)
    work = calls[0].work
    assert work is not None and (len(work.requests), work.reason) == (3, "memory")
    assert host.pool.used == 100
    host.stop(block)
    host.stop(calls[0])
    assert host.runs(*calls[3:]) and host.pool.used == 60


def test_a_batch_is_priced_together() -> None:
    """The function sees the list: a model's weights count once, however many items there are."""
    host = Host()
    shared = host.add(
        "shared",
        1,
        needs=((host.pool, lambda items: 40.0 + 10.0 * len(items)),),
        limits=(),
        batch=Batch(max_size=8, max_wait=0.01),
    )
    calls = [host.submit(shared, amounts=[50.0], value=0) for _ in range(8)]
    assert host.runs(*calls[:6]) and not host.runs(calls[6])
    assert host.pool.used == 100


def test_a_function_that_fails_for_a_list_is_taken_as_a_sum() -> None:
    host = Host()

    def broken(items: list[int]) -> float:
        raise ValueError(items)

    station = host.add("broken", 1, needs=((host.pool, broken),), limits=(), batch=Batch(max_size=4, max_wait=0.01))
    calls = [host.submit(station, amounts=[20.0], value=0) for _ in range(4)]
    assert host.runs(*calls) and host.pool.used == 80


@given(
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    bypass=st.sampled_from([0, 1, 4, 16]),
    seconds=st.integers(0, 2**32),
)
def test_no_request_is_passed_more_often_than_the_rule_says(sizes: list[int], bypass: int, seconds: int) -> None:
    """In a line of its own, nobody starts after more than `bypass` of those behind it for each one ahead of it, and it."""
    host, random = Host(bypass=bypass), Random(seconds)
    calls = [host.call(size) for size in sizes]
    order = [work.requests[0] for work in host.started]
    while host.started:
        host.stop(random.choice(host.started).requests[0], 1.0)
        order += [work.requests[0] for work in host.started if work.requests[0] not in order]
    assert len(order) == len(calls), "somebody never started"
    for n, call in enumerate(calls):
        behind = {id(each) for each in calls[n + 1 :]}
        passed = sum(id(each) in behind for each in order[: order.index(call)])
        assert passed <= bypass * (n + 1)


# Corrections and pressure


def test_estimates_follow_measured_peaks_up_fast_and_down_slowly() -> None:
    correction = Correction()
    for _ in range(3):
        correction.add(100.0, 180.0)
    risen = correction.factor
    assert 1.5 < risen < 1.8
    for _ in range(3):
        correction.add(100.0, 90.0)
    assert risen - 0.06 < correction.factor < risen
    correction.add(100.0, 1e6)  # one absurd reading moves it by no more than 0.3 of the way to 4
    assert correction.factor < 2.5
    for _ in range(1000):
        correction.add(100.0, 0.001)
    assert correction.factor == pytest.approx(0.5, abs=1e-6)
    correction.add(0.0, 5.0)
    assert correction.factor == pytest.approx(0.5, abs=1e-6)


@given(st.lists(st.tuples(st.floats(0.1, 1e12), st.floats(0.0, 1e15)), max_size=50))
def test_no_correction_leaves_its_bounds(readings: list[tuple[float, float]]) -> None:
    correction = Correction()
    for estimate, peak in readings:
        correction.add(estimate, peak)
        assert 0.5 <= correction.factor <= 4.0


def test_a_high_expectile_is_kept() -> None:
    """Nine of ten works take what was said, one takes twice as much: the factor stays near where most of the harm is."""
    correction, random = Correction(), Random(4)
    factors = []
    for n in range(4000):
        correction.add(1.0, 2.0 if random.random() < 0.1 else 1.0)
        factors.append(correction.factor if n > 500 else math.nan)
    mean = sum(factors[501:]) / len(factors[501:])
    assert mean == pytest.approx(1.0 + 0.1 * 0.3 / (0.1 * 0.3 + 0.9 * 0.02), abs=0.05)


def test_a_lease_is_corrected_returned_as_taken_and_never_larger_than_the_budget() -> None:
    host = Host()
    for _ in range(40):
        call = host.call(20)
        assert call.work is not None
        host.scheduler.peaked(call.work, {"host": 60.0, "cuda:0": 1.0})
        host.stop(call)
    a, b, c = host.call(20), host.call(20), host.call(1)
    assert host.runs(a, c) and not host.runs(b), "each takes three times what it says"
    assert host.pool.used == pytest.approx(63, rel=0.01)
    for call in (a, c, b):
        host.stop(call)
    assert host.pool.used == 0
    whole = host.call(90)
    assert host.pool.used == 100, "it has all of it, and is not refused"
    host.stop(whole)


def test_pressure_shrinks_the_budget_at_once_and_lets_it_come_back_slowly() -> None:
    host = Host()
    first = host.call(30)
    host.do(host.scheduler.pressure(host.pool, 20.0, host.now))
    assert host.pool.effective == 50
    second = host.call(30)
    assert host.runs(first) and not host.runs(second)
    for _ in range(10):
        host.now += 1.0
        host.do(host.scheduler.pressure(host.pool, 500.0, host.now))
        if host.runs(second):
            break
    assert host.now == pytest.approx(10 / (RECOVERY * 100)), "ten more, at a thirtieth of the capacity a second"
    host.now += 100.0
    host.do(host.scheduler.pressure(host.pool, 500.0, host.now))
    assert host.pool.effective == 100


def test_while_nothing_runs_one_may_start_whatever_the_pressure() -> None:
    host = Host()
    host.do(host.scheduler.pressure(host.pool, 0.0, host.now))
    first, second = host.call(80), host.call(10)
    assert host.runs(first) and not host.runs(second)
    host.stop(first)
    assert host.runs(second)


def test_a_budget_is_not_wider_than_its_capacity() -> None:
    state = PoolState(Memory("ram", size_bytes=100, device="host"))
    assert not state.pressed(1e9, 0.0)
    assert state.effective == 100


def test_declarations() -> None:
    for size_bytes, share in ((0, 0.9), (-1, 0.9), (None, 0.0), (None, 1.5)):
        with pytest.raises(ConfigError):
            Memory("ram", size_bytes=size_bytes, share=share)
    assert (Memory("ram").device, Memory("ram", size_bytes=5).device) == ("host", None)
    assert (Memory("ram", size_bytes=5).capacity, Memory("gpu", device="cuda:0").capacity) == (5.0, 0.0)
    with pytest.raises(ConfigError, match="needs 6 of pool 'ram'"):
        StationOptions("model", needs=((PoolState(Memory("ram", size_bytes=5)), 6.0),))


# In virtual time


def run(budget: float, sizes: list[float], replicas: int, bypass: int = 16) -> tuple[float, float, float]:
    """Seconds until all are done, the share of the budget that was leased, and the longest wait of the largest tenth."""
    area = 0.0

    def seconds(work: Work) -> float:
        nonlocal area
        took = 0.2 + work.requests[0].amounts[0] / (1000 * MIB)
        area += took * work.requests[0].amounts[0]
        return took

    drive = Drive(seconds)
    drive.scheduler.bypass = bypass
    pool = drive.scheduler.pool(Memory("ram", size_bytes=int(budget)))
    station = drive.add(
        StationOptions("model", replicas=replicas, needs=((pool, total),), limits=(), order=Fifo(), start_timeout=1e6)
    )
    calls = []
    for size in sizes:
        request = Request(value=size)
        request.amounts = [size]
        calls.append(drive.submit(station, request))
    drive.run()
    assert all(call.outcome == "ok" for call in calls) and pool.used == 0
    largest = sorted(calls, key=lambda call: call.amounts[0])[-len(calls) // 10 :]
    end = max(call.ended for call in calls)
    return end, area / budget / end, max(call.started - call.submitted for call in largest)


def test_requests_of_10_to_700_mib_in_a_budget_of_1_gib() -> None:
    """Beside the best fixed concurrency that can never exceed the budget, and beside a strict queue."""
    random = Random(7)
    sizes = [random.uniform(10, 700) * MIB for _ in range(400)]
    ours, share, _ = run(1024 * MIB, sizes, replicas=32)
    fixed, _, _ = run(1024 * MIB, sizes, replicas=1)  # two of the largest do not fit
    strict, _, _ = run(1024 * MIB, sizes, replicas=32, bypass=0)
    print(f"adaptive {ours:.1f} s, leased {share:.0%}; fixed concurrency 1: {fixed:.1f} s; strict queue: {strict:.1f} s")
    assert ours < fixed / 1.9
    assert ours < strict
    assert share > 0.85


def test_the_largest_waits_a_bounded_time_in_a_flood_of_small_ones() -> None:
    """Small ones never cease, so it never fits by itself; the largest still starts after 16 of them and the longest that runs."""
    drive = Drive(lambda work: 1.0)
    pool = drive.scheduler.pool(Memory("ram", size_bytes=100))
    small = drive.add(StationOptions("small", replicas=20, needs=((pool, 10.0),), limits=(), start_timeout=1e6))
    large = drive.add(StationOptions("large", replicas=1, needs=((pool, 95.0),), limits=(), start_timeout=1e6))
    started = []
    for n in range(600):
        drive.at(n * 0.15, lambda: drive.submit(small, Request(), then=lambda request: None))
    for n in range(5):
        drive.at(5.0 + 15.0 * n, lambda: drive.submit(large, Request(), then=started.append))
    drive.run()
    waits = [request.started - request.submitted for request in started]
    assert len(waits) == 5
    assert max(waits) < 4.0, waits
