"""Which requests run together, and when they stop waiting for company."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.core.estimate import ServiceTime
from penstock.core.policy.declared import function, number, whole
from penstock.core.request import Request
from penstock.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Batch:
    """Run up to `max_size` calls together; wait at most `max_wait` seconds for company while a replica is idle.

    `cost(items) -> float` prices a batch, and no batch costs more than `max_cost`: padded tokens are
    `len(items) * max(map(length, items))`. With a cost, the batch is filled with items whose cost alone is close to
    the first one's, except that an item which has waited for `max_age` seconds is no longer passed over. `key(item)`
    keeps apart what cannot run together. `learn` fits seconds = a + b x cost to the batches that ran and picks, among
    those that meet their deadlines, the batch that saves most time against running its items alone; one item is
    always a legal batch.
    """

    max_size: int = 32
    max_wait: float = 0.002
    cost: Callable[[Sequence[Any]], float] | None = None
    max_cost: float = math.inf
    key: Callable[[Any], Hashable] | None = None
    max_age: float = 1.0
    learn: bool = True

    def __post_init__(self) -> None:
        whole("Batch(max_size=...)", self.max_size)
        function("Batch(cost=...)", self.cost)
        function("Batch(key=...)", self.key)
        number("Batch(max_wait=...)", self.max_wait, "seconds", least=0, below=math.inf)
        number("Batch(max_cost=...)", self.max_cost, above=0)
        number("Batch(max_age=...)", self.max_age, "seconds", least=0)
        if self.cost is None and self.max_cost < math.inf:
            raise ConfigError(f"Batch(max_cost={self.max_cost:g}) without cost=: say what a batch costs, cost(items) -> float")
        if self.max_age < self.max_wait:
            raise ConfigError(
                f"Batch(max_age={self.max_age:g}, max_wait={self.max_wait:g}): an item would be too old to be passed "
                "over before its batch may go; use max_age >= max_wait"
            )

    def alone(self, item: Any) -> float:
        """The cost of a batch of this one item. Raises ConfigError for what is no cost."""
        if self.cost is None:
            return 1.0
        cost = float(self.cost([item]))
        if not cost >= 0 or cost == math.inf == self.max_cost:
            raise ConfigError(f"Batch(cost=...) gave {cost:g}; give a finite number, 0 or more")
        return cost

    def key_of(self, item: Any) -> Hashable:
        """What this item runs with. Raises ConfigError for a key that is not even equal to itself, as nan is."""
        key = None if self.key is None else self.key(item)
        if key != key:
            raise ConfigError(f"Batch(key=...) gave {key!r}, which is not equal to itself, so it never finds its like")
        return key


class Pricing:
    """What a batch costs, with few calls of the user's function.

    Nearly every cost is padded (count x longest) or a sum. Which one it is shows after a few batches, and then the
    growing candidates of one choice are priced by formula; the chosen batch is always priced by the real function.
    """

    __slots__ = ("cost", "padded", "seen", "summed")

    def __init__(self, cost: Callable[[Sequence[Any]], float] | None) -> None:
        self.cost = cost
        self.padded = self.summed = cost is not None
        self.seen = 0

    def exact(self, requests: Sequence[Request]) -> float:
        if self.cost is None:
            return float(len(requests))
        total = self._asked(requests)
        if len(requests) > 1 and (self.padded or self.summed):
            tolerance = 1e-6 * abs(total)
            longest, added = max(r.cost for r in requests), sum(r.cost for r in requests)
            self.padded = self.padded and abs(total - len(requests) * longest) <= tolerance
            self.summed = self.summed and abs(total - added) <= tolerance
            self.seen += longest * len(requests) != added
        return total

    def growing(self, requests: Sequence[Request]) -> list[float]:
        """The cost of each prefix."""
        if self.cost is None:
            return [float(n) for n in range(1, len(requests) + 1)]
        costs, longest, added = [], 0.0, 0.0
        by_formula = self.padded != self.summed and self.seen >= 2
        for n, request in enumerate(requests, 1):
            longest, added = max(longest, request.cost), added + request.cost
            if by_formula:
                costs.append(n * longest if self.padded else added)
            else:
                costs.append(self._asked(requests[:n]))
        return costs

    def _asked(self, requests: Sequence[Request]) -> float:
        """What the user's function says of these. It has priced each of them alone: a transition must not fail half-way."""
        assert self.cost is not None
        try:
            cost = float(self.cost([request.value for request in requests]))
        except Exception:
            cost = -1.0
        return cost if cost >= 0 else sum([request.cost for request in requests])


def choose(
    policy: Batch,
    pricing: Pricing,
    window: Sequence[Request],
    now: float,
    time: ServiceTime,
    max_cost: float | None = None,
) -> tuple[list[Request], str]:
    """The batch to run now, from `window` (in the queue's order, all of one key), and what bounded it.

    Maximises sum_i t(alone_i) / t(batch), t(x) = a + b x, over the prefixes of the filling order that fit and finish
    by every deadline in them. Returns at least the first request. `max_cost`: what has been learned to fit.
    """
    most = policy.max_cost if max_cost is None else max_cost
    candidates = _filling_order(policy, window, now)[: policy.max_size]
    if len(candidates) == 1:
        return candidates, ""
    if policy.cost is None and len(candidates) <= most and _all_in_time(candidates, now, time):
        return candidates, "size" if len(candidates) == policy.max_size else ""  # a >= 0, so the most saves most
    costs = pricing.growing(candidates)
    learned = policy.learn and time.known and time.a + time.b > 0
    best, best_gain, alone, earliest, bound = 1, 0.0, 0.0, math.inf, ""
    for n, request in enumerate(candidates, 1):
        if costs[n - 1] > most and n > 1:
            bound = "cost"
            break
        if request.deadline is not None and request.deadline < earliest:
            earliest = request.deadline
        if n > 1 and earliest < math.inf and time.known and now + time.seconds(costs[n - 1]) > earliest:
            bound = "deadline"
            break
        if not learned:
            best = n
            continue
        alone += time.seconds(request.cost)
        gain = alone / time.seconds(costs[n - 1])
        if gain > best_gain * 1.002 or (policy.cost is None and gain >= best_gain):
            best, best_gain = n, gain
    else:
        bound = "size" if best == policy.max_size else ""
    if learned and best < n and not bound:
        bound = "learned"
    return candidates[:best], bound


def _all_in_time(requests: Sequence[Request], now: float, time: ServiceTime) -> bool:
    """Whether a batch of all of these, each of cost 1, meets every deadline in it."""
    if not time.known:
        return True
    done = now + time.seconds(float(len(requests)))
    return not any(r.deadline is not None and r.deadline < done for r in requests)


def _filling_order(policy: Batch, window: Sequence[Request], now: float) -> list[Request]:
    """The head; then what has waited too long, in order; then by closeness of cost to the head's."""
    if policy.cost is None:
        return list(window)
    head = window[0]
    aged = [r for r in window[1:] if now - r.submitted >= policy.max_age]
    young = [r for r in window[1:] if now - r.submitted < policy.max_age]
    young.sort(key=lambda r: (abs(r.cost - head.cost), r.seq))
    return [head, *aged, *young]


def release(
    policy: Batch,
    queued: int,
    cost: float,
    oldest: float,
    earliest: float,
    now: float,
    time: ServiceTime,
    max_cost: float = math.inf,
) -> tuple[str, float]:
    """Whether what is queued may go: (why, now), or ("", when to look again).

    `oldest` is the time at which the longest-waiting request was queued, `earliest` the first deadline.
    """
    if queued >= policy.max_size:
        return "size", now
    if cost >= min(policy.max_cost, max_cost):
        return "cost", now
    at = oldest + policy.max_wait
    if now >= at:
        return "wait", now
    if earliest < math.inf:
        latest_start = earliest - time.seconds(cost) - policy.max_wait / 2
        if now >= latest_start:
            return "deadline", now
        at = min(at, latest_start)
    return "", at
