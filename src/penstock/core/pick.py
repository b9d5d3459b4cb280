"""Whose turn it is: the next requests of a queue, how many at once, and who gives way because it would be too late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.core.admission import doomed
from penstock.core.lease import left
from penstock.core.request import Request
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.core.scheduler import Scheduler
    from penstock.core.station import Station

_SHORT = 0.0005  # seconds


def group(station: Station) -> int:
    """How many unbatched requests cross to a replica in one piece.

    More than one only where the hand-off costs more than the work: all of them together are expected to take less
    than half a millisecond even if each is the slowest seen lately, and every other replica gets as many.
    """
    peak = station.time.peak
    if not station.groups or not station.time.known or peak > _SHORT / 2:
        return 1
    return max(1, min(32, len(station.waiting) // max(1, station.servers), int(_SHORT / max(peak, 1e-5))))


def pick(s: Scheduler, station: Station, now: float, count: int, lead: float) -> list[Request]:
    """The next `count` requests in order. Those that would be wasted give way to a full round of others, if it waits."""
    queue = station.queue
    full = min(count, station.round_size())
    seconds = lead + station.round_seconds()
    if len(station.waiting) <= full or not _may_doom(station, now, seconds):
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
            station.dequeued((request,))
            if station.blocked is not None:
                left(s, station, request)
            s.end(request, "refused", now, error)
        station.targets.moves(len(bad), now)
        return good
    for request, _ in bad:
        queue.charge(request, request.cost)
    late = sorted([request for request, _ in bad], key=_submitted, reverse=True)  # the last to come may just be in time
    for request in late[count - len(good) :]:
        queue.unpop(request)
    return good + late[: count - len(good)]


def _submitted(request: Request) -> float:
    return request.submitted


def _may_doom(station: Station, now: float, seconds: float) -> bool:
    """Whether anything that waits may be too late when it is done: for its deadline, for its caller, or for a target."""
    if station.targets.late(next(iter(station.waiting)), now):
        return True
    if not station.time.known:
        return False
    return station.earliest < now + seconds or (station.patience is not None and station.patience.leaving)
