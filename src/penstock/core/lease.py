"""Who may take of a pool now, and who may pass whom.

First come, first served, with bypass. A station whose request finds no room in some pool stands in line
(`Scheduler.line`, in the order in which they began to wait). Others that fit may start before it, those behind it in its
own queue and those of other services, so that a pool does not stand empty behind its largest customer. But each such
start is counted, and after `Scheduler.bypass` of them the pools it needs are kept for it: nobody else takes of them, and
its own station starts nobody else. So it waits for those before it in line, so many starts, and the longest work that
runs. (Aggressive backfilling bounds the same by predicted run times, which here are not known well enough; Mu'alem and
Feitelson, IEEE TPDS 2001. See docs/adr/0007.)

Keeping is like holding, so it follows the same discipline: pools are kept in lock order, up to the first one without
room. Those who hold that one can only come to wait for what follows it, so whoever is kept waiting is waited for by
nobody whom the keeper waits for. And pools are kept only for one who could start if there were room.

What is kept follows from the state of the moment and is not stored. Whoever stands in line is looked at again at the end
of each transition, for as long as anyone is kept waiting by it (`dispatch.settle`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from penstock.core.policy.batch import release
from penstock.core.pool import PoolState
from penstock.core.request import Request, Work

if TYPE_CHECKING:
    from penstock.core.scheduler import Scheduler
    from penstock.core.station import Station

LOOK = 16  # how many requests behind a blocked one are considered


def released(station: Station, now: float) -> tuple[str, float]:
    """Whether the station's batch may go: (why, now), or ("", when to look again)."""
    assert station.batch is not None
    if station.draining:
        return "drain", now
    oldest = next(iter(station.waiting)).queued
    return release(
        station.batch, len(station.waiting), station.queued_cost, oldest, station.earliest, now, station.time, station.max_cost
    )


def _able(station: Station, now: float) -> bool:
    """Whether this station, which stands in line, waits for nothing but room in pools."""
    if not (station.direct or station.free) or station.ready_at(now) > now:
        return False
    if station.headroom is not None and station.blocked is not None and station.headroom.bars(station, station.blocked, now):
        return False
    return station.batch is None or bool(released(station, now)[0])


def starved(s: Scheduler, station: Station) -> Request | None:
    """The request that is blocked here, if it has been passed so often that nobody may pass it any more."""
    return station.blocked if station.passed >= s.bypass else None


def kept(s: Scheduler, now: float) -> dict[PoolState, Station]:
    """Which pools are kept, and for which station."""
    found: dict[PoolState, Station] = {}
    for station in s.line:
        first = starved(s, station)
        if first is None or not _able(station, now):
            continue
        for need in sorted(station.needs, key=s.locks.place):
            if found.setdefault(need.pool, station) is not station or not need.pool.fits(need.amount((first,))):
                break
    return found


def barred(s: Scheduler, station: Station, now: float) -> bool:
    """Whether a pool that this station needs is kept for another."""
    keeping = kept(s, now) if s.line else {}
    found = any(keeping.get(need.pool, station) is not station for need in station.needs)
    s.barring = s.barring or found
    return found


def fits(station: Station, requests: Sequence[Request]) -> bool:
    """Whether the pools have room for these, run together."""
    return all(need.pool.fits(need.amount(requests)) for need in station.needs)


def rivals(s: Scheduler, station: Station) -> list[Station]:
    """Who stands in line for what this station takes, and it itself if it does."""
    return [other for other in s.line if any(need.pool is its.pool for need in other.needs for its in station.needs)]


def block(s: Scheduler, station: Station, request: Request) -> None:
    """This request waits for room: its station stands in line from now on, if it did not before."""
    if station.blocked is None:
        station.blocked = request
        s.line[station] = None


def left(s: Scheduler, station: Station, request: Request) -> None:
    """A request went from the queue of a station that stands in line: the next one may fit, or the batch is not due now.

    Where all need the same, the place in line is for who comes next.
    """
    s.lapsed = True
    if request is station.blocked:
        heir = next(iter(station.waiting), None)
        if heir is None or station.variable:
            unblock(s, station)
        if heir is not None:
            station.blocked = heir
            s.line[station] = None


def unblock(s: Scheduler, station: Station) -> None:
    """The one that waited has started, or left; what was kept for it is free for others."""
    del s.line[station]
    station.blocked = None
    station.passed = 0


def largest(station: Station, chosen: list[Request]) -> list[Request]:
    """The longest beginning of this batch that the pools have room for; its first request alone fits."""
    low, high = 1, len(chosen)
    while low < high:  # more items never need less
        middle = (low + high + 1) // 2
        part = chosen[:middle]
        if fits(station, part):
            low = middle
        else:
            high = middle - 1
    return chosen[:low]


def lease(s: Scheduler, work: Work, now: float) -> None:
    """Take of all pools at once, and count whom this passes: who stands in line before it, for some of the same."""
    station, requests = work.station, work.requests
    lined = station.blocked in requests
    for other in rivals(s, station):
        if other is station and lined:
            break
        if other is station or _able(other, now):
            other.passed += 1
    if lined:
        unblock(s, station)
    work.asked = tuple([need.declared(requests) for need in station.needs])
    pairs = zip(station.needs, work.asked, strict=True)
    work.lease = tuple([(need.pool, min(need.correction.factor * asked, need.pool.capacity)) for need, asked in pairs])
    for pool, amount in work.lease:
        pool.take(amount)


def learn(work: Work, peaks: Mapping[str, float]) -> None:
    """Correct the station's estimates by what was measured on each device while this work ran."""
    for need, asked in zip(work.station.needs, work.asked, strict=True):
        peak = peaks.get(need.pool.device or "")
        if peak is not None:
            need.correction.add(asked, peak)
