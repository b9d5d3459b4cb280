"""Items of streams on their way to the readers, and what the scheduler hears of them: beginnings, and the pace.

The pace is the time from one item to the next in which the body had to be waited for. While a reader holds an item its
`progress` is infinite, so that its slowness is not the service's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penstock.core.request import RUNNING, Request, Work

if TYPE_CHECKING:
    from penstock.runtime.binding import Binding


def emitted(binding: Binding, pairs: Sequence[tuple[Work, Any]]) -> None:
    """One step of a model with slots: an item at a time, in few operations."""
    station, now = binding.station, binding.runtime.clock()
    charge, cost = station.charge, binding.item_cost
    begun: list[Request] = []
    spent, gaps = 0.0, 0
    for work, item in pairs:
        request = work.requests[0]
        if request.state == RUNNING:
            if request.first is None:
                begun.append(request)
            elif request.progress < now:
                spent += now - request.progress
                gaps += 1
            request.progress = now
            charge(request, cost)
            request.item.stream.put_one(item)
    if begun or (gaps and station.paced):
        _tell(binding, begun, gaps, spent, now)


def produced(binding: Binding, work: Work, items: Sequence[Any]) -> None:
    """A stream of an executor gave these, one after the other."""
    request = work.requests[0]
    if request.state == RUNNING:
        request.item.stream.put(items)
        advanced(binding, request, len(items))
        request.progress = binding.runtime.clock()


def advanced(binding: Binding, request: Request, count: int = 1) -> None:
    """So many items of a stream have come since its `progress`."""
    now = binding.runtime.clock()
    if request.first is None:
        _tell(binding, [request], 0, 0.0, now)
    elif request.progress < now and binding.station.paced:
        _tell(binding, [], count, now - request.progress, now)


def _tell(binding: Binding, begun: Sequence[Request], gaps: int, spent: float, now: float) -> None:
    """Either may let others start."""
    runtime, scheduler, station = binding.runtime, binding.scheduler, binding.station
    for request in begun:
        if commands := scheduler.progress(request, now):
            runtime.apply(commands)
    if gaps and station.paced and (commands := scheduler.paced(station, gaps, spent, now)):
        runtime.apply(commands)
    if binding.timers.wake_at < runtime.armed:
        runtime.arm()
