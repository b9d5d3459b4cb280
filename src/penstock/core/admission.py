"""The decision at the door: refuse for good, refuse for now, or let in."""

from __future__ import annotations

import math
from itertools import takewhile

from penstock.core.patience import Refused
from penstock.core.request import Request
from penstock.core.station import Station
from penstock.core.targets import DOOR
from penstock.errors import (
    DeadlineExceeded,
    DeadlineInfeasible,
    Overloaded,
    PenstockError,
    QueueFull,
    ServiceError,
    ShuttingDown,
    TooLarge,
)

SPARE = 0.5
ROUNDS = 6
"""Of their patience, but at least so many rounds, callers are let wait where a queue stands: one that has not been empty
for as long as they stay. More gives the replicas no more work, and leaves those in it no time to spare for any delay."""


def never(station: Station, request: Request, now: float) -> PenstockError | None:
    """Why this request can never be served as it is, or None."""
    if station.draining:
        return ShuttingDown(f"{station.name} is shutting down and takes no new calls", retry_after=1.0)
    if request.deadline is not None and request.deadline <= now:
        return DeadlineExceeded(f"{station.name}: the deadline passed {now - request.deadline:.3f} s before the call arrived")
    batch, bound = station.batch, station.options.queue
    if batch is not None and request.cost > batch.max_cost:
        return TooLarge(
            f"{station.name}: this input alone costs {request.cost:g}, a whole batch may cost {batch.max_cost:g}; "
            "send a smaller input"
        )
    if request.size > bound.size_bytes:
        return TooLarge(
            f"{station.name}: the input has {request.size} bytes, the whole queue may hold {bound.size_bytes}; "
            "send a smaller input, or raise Queue(size_bytes=...)"
        )
    if station.variable:
        for need in station.needs:
            amount, pool = need.declared((request,)), need.pool
            if amount > pool.capacity:
                return TooLarge(
                    f"{station.name}: this call needs {amount:.12g}{pool.unit} of {pool.name!r}, which has "
                    f"{pool.capacity:.12g}{pool.unit} in all; send a smaller input, or raise its size"
                )
    if station.broken is not None:
        return ServiceError(f"{station.name} has no replica left that works: {station.broken}", retry_after=5.0)
    return None


def hopeless(station: Station, request: Request, now: float) -> PenstockError | None:
    """Why this tenant's calls are not taken while others wait, or None. Asked only where some tenant always hangs up."""
    if not request.root:
        return None
    waits = bool(station.waiting) or (station.ready_at(now) > now if station.direct else not station.free)
    again = station.hangups.refuses(request, now, max(1, station.servers or station.in_flight), waits)
    if not again:
        return None
    return Overloaded(
        f"{station.name}: callers of tenant {request.tenant!r} have all left before an answer could be ready "
        f"({station.round_seconds():.3f} s), and others wait",
        retry_after=again,
    )


def slow(station: Station, request: Request, now: float) -> PenstockError | None:
    """Why the first item would come after its target, or None. Asked where others wait, or were turned away of late."""
    targets = station.targets
    if targets.ttft is None or not targets.time.known or not request.root or not station.in_flight:
        return None
    if station.headroom is not None and station.headroom.favours(station, request.tenant, now):
        return None
    ahead = station.queue.ahead(request) if station.waiting else -1
    if station.waiting and targets.late(next(iter(station.waiting)), now):  # such give way to those who are in time
        ahead = min(ahead, sum(1 for _ in takewhile(lambda other: not targets.late(other, now), reversed(station.waiting))))
    seconds = targets.expected(request, ahead, len(station.waiting), station.queued_cost) + request.waited
    if not targets.turns_away(request, seconds, now):
        return None
    return Overloaded(
        f"{station.name}: the first item would come in {seconds:.3f} s, the target is {targets.ttft:g} s",
        retry_after=seconds - DOOR * targets.ttft,
    )


def overfull(station: Station, request: Request) -> PenstockError | None:
    """Why this request does not fit into the queue, or None."""
    bound = station.options.queue
    queued = len(station.waiting) + station.apart
    if queued >= bound.items:
        return QueueFull(
            f"{station.name}: {queued} calls wait already, the limit is {bound.items}", retry_after=_later(station)
        )
    size_bytes = station.queued_bytes + station.apart_bytes
    if size_bytes + request.size > bound.size_bytes:
        return QueueFull(
            f"{station.name}: {size_bytes} bytes wait already and this call has {request.size}, "
            f"the limit is {bound.size_bytes}",
            retry_after=_later(station),
        )
    return None


def refuse(station: Station, request: Request, now: float) -> PenstockError | None:
    """Why waiting would be in vain, or None. Asked only when the request cannot start at once.

    Predictions refuse roots only: an inner call is part of work that has been admitted. What fits the next two
    rounds is admitted whatever callers are known to do, so that a wrong estimate can be unlearned.
    """
    if not request.root or (not station.rates and (station.free or not station.time.known)):
        return None  # when a rate has room is known before anything else is
    queued = len(station.waiting)
    latest = None if station.patience is None else station.patience.refused
    if latest is not None and latest.again(request, queued, now) and not station.hangups.tries(request):
        return latest.error()
    if _roomy(station, request, now):
        return None
    bound = station.options.queue
    seconds = station.round_seconds()
    wait = _starts_in(station, request, now)
    if request.deadline is not None and now + wait + seconds > request.deadline:
        return DeadlineInfeasible(
            f"{station.name}: would finish in {wait + seconds:.3f} s, the deadline is in {request.deadline - now:.3f} s",
            retry_after=max(0.0, now + wait + seconds - request.deadline),
        )
    longest = station.options.start_timeout if bound.max_wait is None else bound.max_wait
    if wait > longest:
        return Overloaded(f"{station.name}: would wait {wait:.3f} s, the limit is {longest:g} s", retry_after=wait - longest)
    if queued + 1 <= 2 * station.round_size() or station.hangups.tries(request):
        return None
    patience, seconds = station.patience_of(request.tenant, now), station.answer_seconds()
    standing = now - station.since > patience
    longest = min(patience, max(SPARE * patience, ROUNDS * seconds)) if standing else patience
    if request.waited + wait + 2 * seconds > longest:
        station.turned_away = (request.tenant, now + wait + 2 * seconds)
        why = f", and more have come than can be served for {now - station.since:.1f} s" if standing else ""
        error = Overloaded(
            f"{station.name}: would be answered in {wait + seconds:.3f} s; callers have been leaving after {patience:.3f} s"
            + why,
            retry_after=max(0.0, wait + 2 * seconds - longest),
        )
        if station.patience is not None:
            station.patience.refused = Refused(request, queued, now, error)
        return error
    return None


def doomed(station: Station, request: Request, now: float, seconds: float) -> PenstockError | None:
    """Why starting this request now would be wasted work, or None. It is dropped only if enough other work waits."""
    if request.deadline is not None and station.time.known and now + seconds > request.deadline:
        return DeadlineInfeasible(
            f"{station.name}: waited {now - request.submitted:.3f} s and would finish "
            f"{now + seconds - request.deadline:.3f} s too late"
        )
    favoured = station.headroom is not None and station.headroom.favours(station, request.tenant, now)
    if request.root and not favoured and (late := station.targets.late(request, now)):
        return Overloaded(
            f"{station.name}: waited {now - request.submitted:.3f} s; its first item would come {late:.3f} s after the "
            f"target of {station.targets.ttft:g} s",
            retry_after=late,
        )
    if not station.time.known:
        return None
    if request.root and station.patience is not None and station.patience.leaving and not station.hangups.tries(request):
        patience = station.patience_of(request.tenant, now)
        seconds = station.answer_seconds() if station.options.streams else seconds
        if now - request.submitted + seconds > patience:
            return Overloaded(
                f"{station.name}: waited {now - request.submitted:.3f} s; callers have been leaving after {patience:.3f} s",
                retry_after=seconds,
            )
    return None


def _starts_in(station: Station, request: Request, now: float) -> float:
    """Predicted seconds until this request starts, if it were queued now."""
    ahead = station.queue.ahead(request)
    wait = 0.0
    for limit in station.limits:
        ready = limit.ready_at(station.in_flight, now)
        if ready < math.inf:
            wait = max(wait, ready - now + ahead * getattr(limit, "interval", 0.0))
    servers = station.servers if station.replicas else station.in_flight
    if servers == 0 or station.free or not station.running:
        return wait
    seconds = station.round_seconds()
    residual = max(0.0, next(iter(station.running)).started + seconds - now)
    rounds = ahead // max(1, int(station.full_items)) + station.staged
    return max(wait, residual + rounds * seconds / servers)


def _roomy(station: Station, request: Request, now: float) -> bool:
    """Whether even behind all that waits, and two more rounds, this request would be in time; cheap to ask."""
    queued, patience = len(station.waiting), station.patience
    if queued + station.servers < station.elastic:
        return True
    servers = station.servers if station.replicas else station.in_flight
    if servers == 0 or station.rates or (patience is not None and patience.leaving and patience.hurried(request.tenant)):
        return False  # that takes a closer look
    rounds = queued // (int(station.full_items) or 1) + station.staged
    wait = station.round_seconds() * (3.0 + rounds / servers)
    return wait <= station.max_wait and (request.deadline is None or now + wait <= request.deadline)


def _later(station: Station) -> float:
    rounds = len(station.waiting) / station.round_size()
    return max(0.1, rounds * station.round_seconds() / 2)
