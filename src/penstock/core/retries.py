"""Whether a request that failed runs again. Called by the scheduler when its work stops.

Two reasons. It is declared safe, and the policy and its budget allow another start. Or it had not begun: there was no
connection to that host, so nothing was sent; then trying every other host runs nothing twice and needs no budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.core.admission import overfull
from penstock.core.policy.retry import Retry
from penstock.core.request import BACKOFF, Request, Work
from penstock.core.station import Station

if TYPE_CHECKING:
    from penstock.core.scheduler import Scheduler

_ELSEWHERE = Retry(base=0.005, cap=0.1)  # how long to wait before trying another host


def retries(s: Scheduler, work: Work, request: Request, error: BaseException, now: float) -> bool:
    """Keep a place for this request and arm its next start, or say that this was its last."""
    station = work.station
    if request.first is not None or station.draining:
        return False
    begun = getattr(error, "begun", True)
    if begun:
        request.attempts += 1
        if not _may_run_again(station, request, error):
            return False
    elif station.router is None or not station.router.elsewhere(request, work.replica):
        return False
    at = now + (station.options.retry or _ELSEWHERE).delay(len(request.failed_on) + 1, s.random)
    if request.deadline is not None and at >= request.deadline:
        return False
    if overfull(station, request) is not None or (begun and not _paid(station)):
        return False
    station.set_apart([request], 1)
    request.failed_on = (*request.failed_on, work.replica)
    request.state = BACKOFF
    request.work = None
    s.timers.add(at, request)
    return True


def _may_run_again(station: Station, request: Request, error: BaseException) -> bool:
    policy = station.options.retry
    return policy is not None and request.attempts < policy.attempts and isinstance(error, policy.on)


def _paid(station: Station) -> bool:
    return station.retry is not None and station.retry.withdraw()
