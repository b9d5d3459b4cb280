"""The laws that must hold between any two transitions; storms call this after every step."""

from __future__ import annotations

import math
from collections import Counter

from penstock.core.lease import LOOK, fits, kept, starved
from penstock.core.pool import PoolState
from penstock.core.request import ABANDONED, ENDED, QUEUED, RUNNING, STAGED
from penstock.core.router import Router
from penstock.core.scheduler import Scheduler
from penstock.core.station import Station


def check(scheduler: Scheduler, now: float) -> None:
    """Raise AssertionError, with the place, if any law is broken at this instant."""
    assert not scheduler.out, "commands were left behind"
    used: dict[PoolState, tuple[float, int]] = {}
    for station in scheduler.stations.values():
        _counts(scheduler, station)
        _slots(station)
        if station.router is not None:
            _hosts(station, station.router)
        if scheduler.wake_at > now:  # else a tick is due at this very instant
            _conserves_work(scheduler, station, now)
        for work in station.running:
            for pool, amount in work.lease:
                sum_, leases = used.get(pool, (0.0, 0))
                used[pool] = sum_ + amount, leases + 1
    if scheduler.wake_at > now:
        _keeps_with_reason(scheduler, now)
    for state in scheduler.pools.values():
        leased, leases = used.get(state, (0.0, 0))
        assert math.isclose(state.used, leased, abs_tol=1e-6), f"{state!r} leaks: {leased:g} are leased"
        assert state.used <= state.capacity + 1e-6, f"{state!r} is overdrawn"
        assert state.effective <= state.capacity
        assert state.leases == leases
    assert all(s.blocked is not None for s in scheduler.line), "somebody stands in line for nobody"
    timers = scheduler.timers
    assert timers.wake_at == min((at for at, _, _ in timers.heap), default=math.inf), "a timer would be slept through"
    look = min((at for at, _, what in timers.heap if what is None), default=math.inf)
    for request in timers.noted:
        late = request.state not in (ABANDONED, ENDED) and request.deadline is not None and request.deadline < look
        assert not late, f"the deadline of {request!r} would be slept through"


def idle(scheduler: Scheduler) -> None:
    """After everything ended, every count is back to zero."""
    for station in scheduler.stations.values():
        assert not station.waiting and not len(station.queue), f"{station!r} still queues"
        assert not station.running and station.in_flight == 0, f"{station!r} still runs"
        assert station.staged == station.coming == 0 and station.queued_bytes == 0, f"{station!r} kept counts"
        assert station.apart == station.apart_bytes == 0, f"{station!r} kept places"
        assert not station.latest, f"{station!r} kept keys"
        assert station.blocked is None, f"{station!r} waits for a pool"
        assert all(replica.gone for replica in station.replicas if replica.leaving), f"{station!r}: one never left"
    for pool in scheduler.pools.values():
        assert pool.used == 0.0 and pool.leases == 0, f"{pool!r} leaks"
    assert scheduler.timers.dated == 0, "deadlines are still counted"


def _counts(scheduler: Scheduler, station: Station) -> None:
    options = station.options
    assert len(station.queue) == len(station.waiting), f"{station!r}: the order holds {len(station.queue)}"
    assert len(station.waiting) <= options.queue.items, f"{station!r} is over its bound of items"
    assert len(station.waiting) + station.apart <= options.queue.items, f"{station!r} is over its bound with what may come back"
    assert station.in_flight == len(station.running)
    if station.options.streams:
        if station.headroom is not None:
            held = Counter(work.requests[0].tenant for work in station.running)
            assert station.headroom.held == held, f"{station!r}: {held} hold its slots"
        starts = sum(work.cost for work in station.running if work.requests[0].first is None)
        assert math.isclose(station.targets.under_way, starts, abs_tol=1e-6), f"{station!r}: {starts:g} of starts are under way"
    if station.blocked is not None:
        assert station.blocked in station.waiting, f"{station!r} is blocked by one who has gone"
        assert station in scheduler.line, f"{station!r} is blocked and has no place in line"
        bounded = len(station.needs) == 1  # of two pools one is kept after the other
        assert not bounded or station.passed <= scheduler.bypass, f"{station.blocked!r} was passed {station.passed} times"
    previous, size_bytes = -math.inf, 0
    for request in station.waiting:
        size_bytes += request.size
        assert request.state == QUEUED and request.work is None, f"{request!r} waits"
        assert request.queued >= previous, f"{request!r} is out of order in time"
        previous = request.queued
    assert station.queued_bytes == size_bytes <= options.queue.size_bytes
    for work in station.running:
        assert not work.stopped and not work.staged
        live = 0
        for request in work.requests:
            assert request.work is not work or request.state in (RUNNING, ABANDONED), f"{request!r} in {work!r}"
            live += request.work is work and request.state == RUNNING
        assert live == work.live, f"{work!r}: {live} callers wait, counted {work.live}"


def _slots(station: Station) -> None:
    replicas, slots = station.replicas, station.slots
    staged = servers = coming = 0
    free = set(station.free)
    assert len(free) == len(station.free), f"{station!r}: a replica is free twice"
    for replica in replicas:
        index, work, ahead, leaving = replica.index, replica.work, replica.staged, replica.leaving
        is_free = index in free
        assert is_free == (replica.up and work is None and ahead is None), (
            f"{station.name}[{index}]: free={is_free} up={replica.up} {work} {ahead}"
        )
        assert work is None or work in station.running
        assert not (leaving and replica.up), f"{station.name}[{index}] leaves and takes work"
        assert leaving == replicas[index - index % slots].leaving, f"{station.name}[{index}] is left behind"
        assert not replica.gone or (leaving and work is None and ahead is None)
        servers += not leaving
        if ahead is not None:
            staged += 1
            coming += work is None
            assert all(r.state in (STAGED, ABANDONED, ENDED) for r in ahead.requests)
    assert (staged, servers, coming) == (station.staged, station.servers, station.coming), f"{station!r} has miscounted"
    if station.batch is not None:
        for work in station.running:
            assert len(work.requests) <= station.batch.max_size, f"{work!r} is too large"
            assert work.cost <= station.batch.max_cost * (1 + 1e-9), f"{work!r} costs {work.cost}"
            assert len({request.key for request in work.requests}) == 1, f"{work!r} mixes keys"


def _hosts(station: Station, router: Router) -> None:
    """What a route looks at is what there is."""
    size, hosts = router.slots, router.hosts
    assert router.count == sum([len(host.free) for host in hosts])
    running, costs, up = [0] * len(hosts), [0.0] * len(hosts), [0] * len(hosts)
    for work in station.running:
        running[work.replica // size] += 1
        costs[work.replica // size] += work.cost
    for replica in station.replicas[: len(hosts) * size]:
        up[replica.index // size] += replica.up
    for n, host in enumerate(hosts):
        assert host.running == running[n] <= size, f"{station.name}: {host!r} runs {running[n]}"
        assert math.isclose(host.cost, costs[n], abs_tol=1e-6), f"{station.name}: {host!r} has {host.cost:g}, not {costs[n]:g}"
        assert host.up == up[n], f"{station.name}: {host!r} has {host.up} slots up, not {up[n]}"


def _conserves_work(scheduler: Scheduler, station: Station, now: float) -> None:
    """No replica idles while released work waits within limits and pools."""
    if not station.waiting or not (station.direct or station.free):
        return
    if station.ready_at(now) > now or _blocked(scheduler, station, now):
        return
    if station.headroom is not None and station.headroom.scarce(station, now):
        assert station.in_flight, f"{station!r} leaves slots to others, and no end will let it look again"
        return
    assert station.batch is not None, f"{station!r} idles while work waits"
    oldest = next(iter(station.waiting)).queued
    full = len(station.waiting) >= station.batch.max_size or station.queued_cost >= station.batch.max_cost
    assert not full and now < oldest + station.batch.max_wait + 1e-9, f"{station!r} idles while a batch is due"


def _blocked(scheduler: Scheduler, station: Station, now: float) -> bool:
    """Whether pools keep everyone here waiting who may start: whoever has been passed too often, or all that is looked at."""
    if not station.needs:
        return False
    keeping = kept(scheduler, now)
    if any(keeping.get(need.pool, station) is not station for need in station.needs):
        return True
    first = starved(scheduler, station)
    if first is not None:
        return not fits(station, (first,))
    if station.variable and station.blocked is not None:
        return len(station.waiting) > LOOK or not any(fits(station, (request,)) for request in station.waiting)
    return not fits(station, (station.queue.peek(now),))


def _keeps_with_reason(scheduler: Scheduler, now: float) -> None:
    """Nothing is kept for a station that could not start anyway, or that could start at once."""
    keeping = kept(scheduler, now)
    for pool, station in keeping.items():
        able = (station.direct or station.free) and station.ready_at(now) <= now
        if station.headroom is not None and station.blocked is not None:
            able = able and not station.headroom.bars(station, station.blocked, now)
        assert able, f"{pool!r} is kept for {station!r}, which could not start"
        assert station.blocked is not None and station.passed >= scheduler.bypass
        alone = all(keeping.get(need.pool, station) is station for need in station.needs)
        assert not (alone and fits(station, (station.blocked,))), f"{pool!r} is kept for {station!r}, which has room"
