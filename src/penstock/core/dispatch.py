"""From queued to started: forming work, taking its lease, and staging the next batch.

Everything here runs inside one scheduler transition. Nothing waits for a poll: whatever frees something calls
`dispatch` for the stations that may now start.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.core.admission import doomed
from penstock.core.commands import Stage, Start
from penstock.core.policy.batch import choose, release
from penstock.core.request import RUNNING, STAGED, Request, Work
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.core.pool import PoolState
    from penstock.core.scheduler import Scheduler
    from penstock.core.station import Station


_SHORT = 0.0005  # seconds


def dispatch(s: Scheduler, station: Station, now: float, most: float = math.inf) -> int:
    """Start what may start now, at most `most` times; returns how many did."""
    started = 0
    while station.waiting and started < most:
        if not station.direct and not station.free:
            break
        at = station.ready_at(now)
        if at > now:
            s.check(station, at)
            break
        reason = "alone"
        if station.batch is not None:
            reason, at = _released(station, now)
            if not reason:
                s.check(station, at)
                break
        if station.needs and not station.pools_fit():
            for pool, amount in station.needs:
                if not pool.fits(amount):
                    pool.waiters[station] = None
            break
        requests, reason, cost = _form(s, station, now, reason)
        router = station.router
        replica = -1 if station.direct else station.free[-1] if router is None else router.pick(requests[0], now, s.random)
        start(s, Work(station, replica, requests, reason, cost), now)
        started += 1
    if station.stageable and station.waiting and station.batch is not None:
        _stage(s, station, now)
    return started


def _released(station: Station, now: float) -> tuple[str, float]:
    assert station.batch is not None
    if station.draining:
        return "drain", now
    oldest = next(iter(station.waiting)).queued
    return release(
        station.batch, len(station.waiting), station.queued_cost, oldest, station.earliest, now, station.time, station.max_cost
    )


def _form(s: Scheduler, station: Station, now: float, reason: str, lead: float = 0.0) -> tuple[list[Request], str, float]:
    """Take the next work's requests out of the queue; it will start in `lead` seconds."""
    batch = station.batch
    if batch is None:
        requests = _pick(s, station, now, _group(station), lead)
        for request in requests:
            station.dequeued(request)
        return requests, reason, sum([request.cost for request in requests])
    selective = batch.cost is not None or batch.key is not None
    window = _pick(s, station, now, 4 * batch.max_size + 16 if selective else batch.max_size, lead)
    head = window[0]
    alike = [r for r in window if r.key == head.key] if batch.key is not None else window
    chosen, bound = choose(batch, station.pricing, alike, now + lead, station.time, station.max_cost)
    if len(chosen) < len(window):
        kept = set(map(id, chosen))
        for request in reversed(window):
            if id(request) not in kept:
                station.queue.unpop(request)
    for request in chosen:
        station.dequeued(request)
    cost = station.pricing.exact(chosen)
    if station.waiting:
        station.full_items += 0.1 * (len(chosen) - station.full_items)
        station.full_cost += 0.1 * (cost - station.full_cost) if station.full_cost else cost
    return chosen, bound or reason, cost


def _group(station: Station) -> int:
    """How many unbatched requests cross to a replica in one piece.

    More than one only where the hand-off costs more than the work: all of them together are expected to take less
    than half a millisecond even if each is the slowest seen lately, and every other replica gets as many.
    """
    peak = station.time.peak
    if not station.groups or not station.time.known or peak > _SHORT / 2:
        return 1
    return max(1, min(16, len(station.waiting) // len(station.replicas), int(_SHORT / max(peak, 1e-5))))


def _pick(s: Scheduler, station: Station, now: float, count: int, lead: float) -> list[Request]:
    """The next `count` requests in order. Those that would be wasted give way to a full round of others, if it waits."""
    queue = station.queue
    full = min(count, station.round_size())
    seconds = lead + station.round_seconds()
    if not station.time.known or len(station.waiting) <= full or not _may_doom(station, now + seconds):
        return queue.take(count, now)
    good: list[Request] = []
    bad: list[tuple[Request, PenstockError]] = []
    while queue and len(good) < count:
        request = queue.pop(now)
        error = doomed(station, request, now, seconds)
        if error is None:
            good.append(request)
        else:
            queue.charge(request, -request.cost)  # a tenant does not pay for what may be dropped
            bad.append((request, error))
    if len(good) >= full:
        for request, error in bad:
            station.dequeued(request)
            s.end(request, "refused", now, error)
        return good
    for request, _ in bad:
        queue.charge(request, request.cost)
    late = sorted([request for request, _ in bad], key=_submitted, reverse=True)  # the last to come may just be in time
    for request in late[count - len(good) :]:
        queue.unpop(request)
    return good + late[: count - len(good)]


def _submitted(request: Request) -> float:
    return request.submitted


def _may_doom(station: Station, done: float) -> bool:
    """Whether anything that waits may be too late for its deadline, or for its caller, when it is done."""
    return station.earliest < done or (station.patience is not None and station.patience.leaving)


def start(s: Scheduler, work: Work, now: float) -> None:
    """Take the lease, in one step, and order the start."""
    station = work.station
    freed = now
    if work.replica >= 0:
        station.free.remove(work.replica)
        replica = station.replicas[work.replica]
        replica.work = work
        freed = replica.freed
        if station.router is not None:
            station.router.started(work)
    take(s, work, now, freed)
    s.out.append(Start(work))


def take(s: Scheduler, work: Work, now: float, freed: float) -> None:
    """The lease: limits, pools and the replica's slot, all at once."""
    station = work.station
    station.in_flight += 1
    for rate in station.rates:
        rate.started(now)
    for pool, amount in station.needs:
        pool.used += amount
    work.lease = station.needs
    work.started = now
    station.running[work] = None
    at = now + station.progress_timeout
    if at < station.check_at:
        s.check(station, at)
    for request in work.requests:
        if request.state <= STAGED:
            request.work = work
            request.state = RUNNING
            request.started = request.progress = now
            request.released = freed if freed > request.submitted else request.submitted


def give(work: Work, now: float) -> tuple[tuple[PoolState, float], ...]:
    """Return the lease, once, when the work has really stopped."""
    station = work.station
    assert not work.stopped, f"{work!r} stopped twice"
    work.stopped = True
    del station.running[work]
    station.in_flight -= 1
    for pool, amount in work.lease:
        pool.used -= amount
    if work.replica >= 0:
        replica = station.replicas[work.replica]
        replica.work = None
        replica.freed = now
        if station.router is not None:
            station.router.stopped(work)
        if replica.staged is not None:
            station.coming += 1
        elif replica.up:
            station.free.append(work.replica)
    return work.lease


def wake(s: Scheduler, station: Station, now: float) -> None:
    """The station's pools have room again: start what waits for them, the most urgent and oldest head first."""
    waiters: dict[Station, None] = {station: None}
    for pool, _ in station.needs:
        waiters.update(pool.waiters)
        pool.waiters.clear()
    while waiters:
        ranked = [(_rank(waiter, now), n, waiter) for n, waiter in enumerate(waiters) if waiter.waiting]
        if not ranked:
            return
        first = min(ranked)[2]
        if not dispatch(s, first, now, most=1):
            del waiters[first]


def _rank(station: Station, now: float) -> tuple[int, float, int]:
    head = station.queue.peek(now)
    return head.band, head.arrival, head.seq


def _stage(s: Scheduler, station: Station, now: float) -> None:
    """Put one full batch behind each busy replica, so that it starts before the last one's answers are written."""
    batch = station.batch
    assert batch is not None
    for replica in station.replicas:
        if replica.work is None or replica.staged is not None or not replica.up:
            continue
        full = len(station.waiting) >= batch.max_size or station.queued_cost >= station.max_cost
        if not full or (station.ready_at(now) == math.inf and not _frees_limit(station)):
            return
        lead = max(0.0, replica.work.started + station.time.seconds(replica.work.cost) - now)
        reason = "size" if len(station.waiting) >= batch.max_size else "cost"
        requests, reason, cost = _form(s, station, now, reason, lead)
        work = Work(station, replica.index, requests, reason, cost)
        work.staged = True
        replica.staged = work
        station.staged += 1
        station.set_apart(requests, 1)
        for request in requests:
            request.state = STAGED
            request.work = work
        s.out.append(Stage(work))


def _frees_limit(station: Station) -> bool:
    """A staged work takes the place of the one before it, so a limit that is just full is no obstacle."""
    return all(limit.ready_at(station.in_flight - 1, 0.0) < math.inf for limit in station.limits)
