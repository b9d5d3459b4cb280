"""What the passing of time ends or starts. Called by the scheduler's `tick`, within its transition."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.core.dispatch import dispatch
from penstock.core.request import ABANDONED, BACKOFF, ENDED, PENDING, QUEUED, RUNNING, Request
from penstock.errors import DeadlineExceeded, ProgressTimeout, StartTimeout

if TYPE_CHECKING:
    from penstock.core.scheduler import Scheduler
    from penstock.core.station import Station


def request_due(s: Scheduler, request: Request, now: float) -> None:
    """A request's deadline passed, or its wait before a retry is over."""
    station, deadline = request.station, request.deadline
    if station is None or request.state in (ABANDONED, ENDED):
        return
    if deadline is not None and now >= deadline:
        message = f"{station.name}: not answered by its deadline, {now - request.submitted:.3f} s after it was sent"
        s.abandon(request, "expired", now, DeadlineExceeded(message))
        if request.state == ENDED and station.waiting:
            dispatch(s, station, now)
    elif request.state == BACKOFF:
        station.set_apart([request], -1)
        request.state = QUEUED
        station.enqueue(request, now)
        dispatch(s, station, now)


def station_due(s: Scheduler, station: Station, now: float) -> None:
    """Expire what has waited or stood still for too long, then start what has become due."""
    timeout = station.options.start_timeout
    while station.waiting:
        oldest = next(iter(station.waiting))
        if oldest.queued + timeout > now:
            s.check(station, oldest.queued + timeout)
            break
        s.leave_queue(oldest, now)
        message = f"{station.name}: not started within {timeout:g} s; the service is overloaded or stuck"
        s.end(oldest, "expired", now, StartTimeout(message, retry_after=1.0))
    _stalled(s, station, now)
    if station.waiting:
        dispatch(s, station, now)


def _stalled(s: Scheduler, station: Station, now: float) -> None:
    limit = station.options.progress_timeout
    for work in list(station.running):
        last = max((r.progress for r in work.requests if r.state == RUNNING), default=math.inf)
        if last + limit > now:
            s.check(station, min(last, now) + limit)
            if work.started + limit > now:
                break  # later starts have later limits
            continue
        message = f"{station.name}: no progress for {limit:g} s; raise progress_timeout if this is normal"
        for request in work.requests:
            if request.state == RUNNING:
                s.abandon(request, "expired", now, ProgressTimeout(message))


def redate(s: Scheduler, request: Request, deadline: float | None) -> None:
    """The deadline of a request changes: its answer is shared, and who waits for it came or left. Its rank stays.

    None stands for no deadline; one that has been submitted with a deadline keeps one, at infinity.
    """
    station = request.station
    if request.state == PENDING or station is None:
        request.deadline = deadline
    elif request.state not in (ABANDONED, ENDED) and request.deadline != deadline:
        if request.deadline is None:
            s.timers.dated += 1
        request.deadline = math.inf if deadline is None else deadline
        if deadline is not None:
            s.timers.add(deadline, request)
            station.earliest = min(station.earliest, deadline)
