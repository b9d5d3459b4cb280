"""What the items of streams tell: when an answer began, and how fast it goes on. Called within a transition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.core.dispatch import dispatch
from penstock.core.request import Request
from penstock.core.station import Station

if TYPE_CHECKING:
    from penstock.core.scheduler import Scheduler


def produced(s: Scheduler, request: Request, now: float) -> None:
    """A stream produced items. After the first one its start is not under way any more, and others may start."""
    request.progress = now
    station, work = request.station, request.work
    if request.first is not None or station is None or work is None:
        return
    request.first = now
    if station.options.streams:
        station.targets.first(work, now)
    if station.patience is not None and request.root:
        station.patience.exit(request.tenant, now - request.submitted, False, now)
    if station.waiting and station.targets.ttft is not None:
        dispatch(s, station, now)


def paced(s: Scheduler, station: Station, items: int, seconds: float, now: float) -> None:
    """Streams went on. What that says of their pace may raise a limit."""
    for limit in station.paced:
        limit.paced(items, seconds, station.in_flight, now)
    if station.waiting:
        dispatch(s, station, now)
