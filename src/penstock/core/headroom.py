"""A few slots that only a tenant below its share may take, while several tenants are active.

Fair order alone bounds what backlogged tenants get, not how long a light one waits: long answers of a heavy tenant hold all
slots, and one falls free only now and then. So one slot in sixteen is left to tenants that hold less than their share
(by weight) of all slots. It is trunk reservation, by which telephone networks keep a few circuits for calls that would
otherwise be crowded out: a small reserve nearly removes their waiting, and costs the others next to nothing (Key,
Optimal control and trunk reservation in loss networks, 1990). While one tenant is active nothing is left idle.

Who may take what is left changes with every item that is charged; it is looked at when something starts, ends or begins to
answer, and something always runs there.

A tenant is active while it runs something, and for `AWAY` seconds after it last called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from penstock.core.lease import barred, block, fits, starved
from penstock.core.policy.limit import RateState
from penstock.core.policy.order import FairShare, Order, Priority

if TYPE_CHECKING:
    from penstock.core.request import Request
    from penstock.core.scheduler import Scheduler
    from penstock.core.station import Station

AWAY = 60.0
_EACH = 16
_LEAST = 4  # slots of which one can be spared


def headroom_of(order: Order, streams: bool, replicas: int | None) -> Headroom | None:
    """Where streams hold slots, and the order is fair between tenants."""
    fair = order.then if isinstance(order, Priority) else order
    return Headroom(fair.weights) if streams and replicas and isinstance(fair, FairShare) else None


class Headroom:
    """Of one station: who holds how many of its slots, and who is active."""

    __slots__ = ("held", "seen", "weights")

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        self.held: dict[str, int] = {}
        self.seen: dict[str, float] = {}  # when a tenant last called, or a call of it stopped; the oldest first

    def came(self, tenant: str, now: float) -> None:
        self.seen.pop(tenant, None)
        self.seen[tenant] = now

    def started(self, station: Station, tenant: str, now: float) -> bool:
        """Whether it goes before others: it is within its share, and not the only one."""
        self.came(tenant, now)
        early = self.favours(station, tenant, now)
        self.held[tenant] = self.held.get(tenant, 0) + 1
        return early

    def stopped(self, tenant: str, now: float) -> None:
        self.held[tenant] -= 1
        if not self.held[tenant]:
            del self.held[tenant]
        self.came(tenant, now)

    def several(self, now: float) -> bool:
        """Whether more than one tenant is active."""
        if len(self.seen) < 2:
            return False
        while self.seen:
            tenant = next(iter(self.seen))
            if self.seen[tenant] + AWAY > now:
                break
            del self.seen[tenant]
            if tenant in self.held:
                self.came(tenant, now)
        return len(self.seen) > 1

    def until(self) -> float:
        """When somebody is active no longer, if nothing happens."""
        return next(iter(self.seen.values()), math.inf) + AWAY

    def scarce(self, station: Station, now: float) -> bool:
        """Whether what is free is only for those below their share."""
        most = _most(station)
        free = min(len(station.free), most - station.in_flight)
        return free <= reserve(most) and self.several(now)

    def below(self, station: Station, tenant: str, slots: float | None = None) -> bool:
        """Whether one more is within this tenant's share of so many slots, or of all."""
        weight = self.weights.get(tenant, self.weights.get("*", 1.0))
        every = sum([self.weights.get(each, self.weights.get("*", 1.0)) for each in self.seen])
        if tenant not in self.seen:
            every += weight
        return (self.held.get(tenant, 0) + 1) * every <= (_most(station) if slots is None else slots) * weight

    def favours(self, station: Station, tenant: str, now: float) -> bool:
        """Whether this tenant holds less than its share of what is in use, and is not the only one.

        Its starts go before others', so how long those take does not make it late.
        """
        return self.several(now) and self.below(station, tenant, station.in_flight)

    def bars(self, station: Station, request: Request, now: float) -> bool:
        """Whether this request may not take what is free. An inner call is part of work that has been admitted."""
        return request.root and self.scarce(station, now) and not self.below(station, request.tenant)

    def first(self, station: Station, now: float) -> Request | None:
        """Whoever may take what is free: the first in order of those below their share, if it is not too far ahead of its turn.

        As many of their starts may go out of turn as there are slots for them, so that the service that tenants get stays
        as even as it was, but for that much.
        """
        most = reserve(_most(station)) * station.full_cost
        for head, early in station.queue.heads(now):
            if not head.root or (early <= most and self.below(station, head.tenant)):
                return head
        return None


def take_first(s: Scheduler, station: Station, first: Request, now: float) -> list[Request]:
    """This one, out of its turn, if the pools have room."""
    if station.needs and (barred(s, station, now) or starved(s, station) not in (None, first) or not fits(station, (first,))):
        block(s, station, first)
        return []
    station.queue.remove(first)
    station.queue.charge(first, first.cost)
    station.dequeued((first,))
    if station.blocked is not None and not station.variable:
        station.blocked = first
    return [first]


def reserve(slots: float) -> int:
    """How many of so many slots are left to tenants below their share."""
    return max(1, int(slots) // _EACH) if slots >= _LEAST else 0


def _most(station: Station) -> float:
    """How many may be in flight."""
    return min(
        [len(station.free) + station.in_flight, *[limit.n for limit in station.limits if not isinstance(limit, RateState)]]
    )
