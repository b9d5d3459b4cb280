"""From queued to started: forming work, taking its lease, and staging the next batch.

Everything here runs inside one scheduler transition. Nothing waits for a poll: whatever frees something calls
`dispatch` for the stations that may now start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from penstock.core.commands import Retire, Stage, Start
from penstock.core.headroom import take_first
from penstock.core.lease import LOOK, barred, block, fits, largest, lease, released, starved
from penstock.core.pick import group, pick
from penstock.core.policy.batch import Batch, choose
from penstock.core.request import RUNNING, STAGED, Request, Work

if TYPE_CHECKING:
    from penstock.core.pool import PoolState
    from penstock.core.replica import Replica
    from penstock.core.scheduler import Scheduler
from penstock.core.station import Station


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
        reason, first = "alone", None
        if station.headroom is not None and station.headroom.scarce(station, now):
            first = station.headroom.first(station, now)
            if first is None:
                s.check(station, station.headroom.until())
                break
        if station.batch is not None:
            reason, at = released(station, now)
            if not reason:
                s.check(station, at)
                break
        if first is not None:
            requests, cost = take_first(s, station, first, now), first.cost
            if not requests:
                break
        elif station.needs:
            requests, reason, cost = _form_within(s, station, now, reason)
            if not requests:
                break
        else:
            requests, reason, cost = _form(s, station, now, reason)
        station.targets.moves(len(requests), now)
        router = station.router
        replica = -1 if station.direct else station.free[-1] if router is None else router.pick(requests[0], now, s.random)
        start(s, Work(station, replica, requests, reason, cost), now)
        started += 1
    if station.stageable and station.waiting and station.batch is not None:
        _stage(s, station, now)
    return started


def _form(s: Scheduler, station: Station, now: float, reason: str, lead: float = 0.0) -> tuple[list[Request], str, float]:
    """Take the next work's requests out of the queue; it will start in `lead` seconds."""
    batch = station.batch
    if batch is None:
        requests = pick(s, station, now, group(station), lead)
        station.dequeued(requests)
        return requests, reason, sum([request.cost for request in requests])
    window = pick(s, station, now, _window(batch), lead)
    return _batch(station, window, window, now, reason, lead)


def _window(batch: Batch) -> int:
    selective = batch.cost is not None or batch.key is not None
    return 4 * batch.max_size + 16 if selective else batch.max_size


def _batch(
    station: Station, window: list[Request], able: list[Request], now: float, reason: str, lead: float = 0.0
) -> tuple[list[Request], str, float]:
    """Of what was picked, the batch that goes, made of those that are `able`; the others return to the queue."""
    batch = station.batch
    assert batch is not None
    head = able[0]
    alike = [r for r in able if r.key == head.key] if batch.key is not None else able
    chosen, bound = choose(batch, station.pricing, alike, now + lead, station.time, station.max_cost)
    if station.variable and len(chosen) > 1:
        fitting = largest(station, chosen)
        if len(fitting) < len(chosen):
            chosen, bound = fitting, "memory"
    if len(chosen) < len(window):
        kept = set(map(id, chosen))
        for request in reversed(window):
            if id(request) not in kept:
                station.queue.unpop(request)
    station.dequeued(chosen)
    cost = station.pricing.exact(chosen)
    if station.waiting:
        station.full_items += 0.1 * (len(chosen) - station.full_items)
        station.full_cost += 0.1 * (cost - station.full_cost) if station.full_cost else cost
    return chosen, bound or reason, cost


def _form_within(s: Scheduler, station: Station, now: float, reason: str) -> tuple[list[Request], str, float]:
    """The same within what the pools have room for; nothing if no request fits that may start now."""
    head = station.queue.peek(now)
    if barred(s, station, now) or not (station.variable or fits(station, (head,))):
        block(s, station, head)
        return [], "", 0.0
    if station.variable:
        return _form_varied(s, station, now, reason)
    requests, reason, cost = _form(s, station, now, reason)
    if station.blocked is not None:
        station.blocked = requests[0]  # all need the same: whoever is first now starts in its place
    return requests, reason, cost


def _form_varied(s: Scheduler, station: Station, now: float, reason: str) -> tuple[list[Request], str, float]:
    """Of requests that need more or less than each other, the first that fit, unless one has been passed too often."""
    queue, batch = station.queue, station.batch
    if station.blocked is None and not fits(station, (head := queue.peek(now),)):
        block(s, station, head)
    count = _window(batch) if batch is not None else 1
    window: list[Request] = []
    first = starved(s, station)
    if first is not None:
        if not fits(station, (first,)):
            return [], "", 0.0
        queue.remove(first)
        queue.charge(first, first.cost)
        window.append(first)
        count -= 1
    elif station.blocked is not None:
        count = max(count, LOOK)
    if count and queue:
        window += pick(s, station, now, count, 0.0)
    able = [request for request in window if fits(station, (request,))]
    if not able:
        for request in reversed(window):
            queue.unpop(request)
        if station.blocked is None:  # the first was late, and gave way to one that does not fit
            block(s, station, window[0])
            return _form_varied(s, station, now, reason)
        return [], "", 0.0
    if batch is not None:
        return _batch(station, window, able, now, reason)
    for request in reversed(window):
        if request is not able[0]:
            queue.unpop(request)
    station.dequeued(able[:1])
    return able[:1], reason, able[0].cost


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
    if station.needs:
        lease(s, work, now)
    work.started = now
    if station.headroom is not None:
        work.early = station.headroom.started(station, work.requests[0].tenant, now)
    if station.options.streams:
        station.targets.started(work)
        station.full_cost += 0.1 * (work.cost - station.full_cost) if station.full_cost else work.cost
    station.running[work] = None
    at = now + station.progress_timeout
    if at < station.check_at:
        s.check(station, at)
    batched = station.batch is not None
    for request in work.requests:
        if request.state <= STAGED:
            request.work = work
            request.state = RUNNING
            request.started = request.progress = now
            # a call of a batch has waited for company since a replica was free
            request.released = now if not batched else freed if freed > request.submitted else request.submitted


def give(s: Scheduler, work: Work, now: float) -> tuple[tuple[PoolState, float], ...]:
    """Return the lease, once, when the work has really stopped."""
    station = work.station
    assert not work.stopped, f"{work!r} stopped twice"
    work.stopped = True
    del station.running[work]
    station.in_flight -= 1
    if station.options.streams:
        station.targets.stopped(work, station.in_flight)
    if station.headroom is not None:
        station.headroom.stopped(work.requests[0].tenant, now)
    for pool, amount in work.lease:
        pool.give(amount)
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
        elif replica.leaving:
            vacate(s, station, replica)
    return work.lease


def vacate(s: Scheduler, station: Station, replica: Replica) -> None:
    """A replica that was retired runs nothing any more: its executor may put it away, with the last slot of its host."""
    if replica.work is None and replica.staged is None and not replica.gone:
        replica.gone = True
        host = station.host(replica.index)
        if all(slot.gone for slot in host):
            s.out.append(Retire(station, host[0].index))


def wake(s: Scheduler, stations: Iterable[Station], now: float) -> bool:
    """Start what can start now at these stations, the most urgent and oldest head first; returns whether any did."""
    waiting, started = dict.fromkeys(stations), False
    while True:
        ranked = [(_rank(station, now), n, station) for n, station in enumerate(waiting) if station.waiting]
        if not ranked:
            return started
        first = min(ranked)[2]
        if dispatch(s, first, now, most=1):
            started = True
        else:
            del waiting[first]


def settle(s: Scheduler, now: float) -> None:
    """At the end of a transition: if anyone was kept waiting for another, look again at all who stand in line.

    The last look changes nothing, so it has judged everyone by the state that stays.
    """
    again = s.barring or s.lapsed
    while again:
        s.barring = s.lapsed = False
        again = wake(s, list(s.line), now) or s.lapsed


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
