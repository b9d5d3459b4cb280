"""Who goes first. Orders compose: bands, then tenants, then deadline; that composition is the default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.core.bands import BandQueue
from penstock.core.policy.declared import number
from penstock.core.queues import Ledger, Queue, SortedQueue, TenantQueue
from penstock.core.request import Request
from penstock.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Fifo:
    """First come, first served, by the arrival of the root call: an inner call keeps the place of its request."""

    def leaf(self) -> SortedQueue:
        return SortedQueue(_arrival)

    def queue(self) -> Queue:
        return self.leaf()


@dataclass(frozen=True, slots=True)
class EarliestDeadline:
    """Earliest deadline first (Liu and Layland, 1973).

    A call without a deadline counts as one that is due `horizon` seconds after its arrival, so that it cannot starve
    behind calls that have one.
    """

    horizon: float = 60.0

    def __post_init__(self) -> None:
        number("EarliestDeadline(horizon=...)", self.horizon, "seconds", above=0)

    def leaf(self) -> SortedQueue:
        horizon = self.horizon

        def due(request: Request) -> float:
            return request.arrival + horizon if request.deadline is None else request.deadline

        return SortedQueue(due)

    def queue(self) -> Queue:
        return self.leaf()


@dataclass(frozen=True, slots=True)
class FairShare:
    """Fair share of the service's work between tenants: virtual token counters (VTC, OSDI 2024).

    The backlogged tenant with the least `work done / weight` goes first; work is charged by cost when it starts and
    corrected as it is done. Between two backlogged tenants the difference of weighted service stays within twice the
    largest cost (calls that would be too late go last, whoever's they are), and the service never idles while anyone
    waits. `weights` maps tenants to positive numbers, "*" stands for all others (default 1). `then` orders one tenant's
    own calls.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    then: Fifo | EarliestDeadline = field(default_factory=EarliestDeadline)

    def __post_init__(self) -> None:
        _an_order("FairShare", self.then, Fifo, EarliestDeadline)
        if not isinstance(self.weights, Mapping):
            raise ConfigError(f"FairShare(weights={self.weights!r}): a dict from tenants to numbers")
        for tenant, weight in self.weights.items():
            number(f"FairShare(weights=...) of {tenant!r}", weight, above=0)

    def ledger(self) -> Ledger:
        return Ledger(self.weights)

    def queue(self) -> Queue:
        return TenantQueue(self.ledger(), self.then.leaf)


@dataclass(frozen=True, slots=True)
class Priority:
    """Strict bands: the smaller number goes first, as in Triton and vLLM. `then` orders the calls within one band.

    A call moves up one band for every `age` seconds it has waited, until it is in the most urgent band that is in
    use: nothing starves, and a band of difference is worth exactly `age` seconds of waiting.
    """

    age: float = 30.0
    then: FairShare | Fifo | EarliestDeadline = field(default_factory=FairShare)

    def __post_init__(self) -> None:
        number("Priority(age=...)", self.age, "seconds", above=0)
        _an_order("Priority", self.then, FairShare, Fifo, EarliestDeadline)

    def queue(self) -> Queue:
        then = self.then
        if isinstance(then, FairShare):
            ledger = then.ledger()  # one account a tenant, whatever the band
            return BandQueue(self.age, lambda: TenantQueue(ledger, then.then.leaf))
        return BandQueue(self.age, then.leaf)


Order = Fifo | EarliestDeadline | FairShare | Priority


def _arrival(request: Request) -> float:
    return request.arrival


def _an_order(name: str, then: object, *kinds: type) -> None:
    if not isinstance(then, kinds):
        listed = " or ".join(f"{kind.__name__}()" for kind in kinds)
        raise ConfigError(f"{name}(then={then!r}): {listed}")
