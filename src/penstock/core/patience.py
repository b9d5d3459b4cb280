"""How long callers wait before they leave: learned, so that work is not done for callers who will be gone.

Patience is the greatest age that 90 % of callers outlive, by the Kaplan-Meier estimate of survival (Kaplan and Meier,
1958): a caller who left before the first output is an event at its age; one that was answered, and one that still
waits, is censored at its age. Counts decay with a half-life, and a prior of callers who never leave keeps a few early
quitters from deciding, so that an estimate which has become wrong is unlearned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

_FIRST = 1e-3  # seconds: exits before this age say nothing about waiting
_GROWTH = math.log(1.03)  # resolution of ages: 3 %
_BINS = 470  # up to about 1000 s
_TENANTS = 1024


def _slot(age: float) -> int:
    return min(int(math.log(age / _FIRST) / _GROWTH), _BINS)


class Patience:
    """One tenant's exits, by age in seconds."""

    __slots__ = ("cached", "censored", "changes", "computed", "epoch", "half_life", "left", "prior", "quantile")

    def __init__(self, half_life: float = 60.0, prior: float = 20.0, quantile: float = 0.9) -> None:
        self.half_life = half_life
        self.prior = prior
        self.quantile = quantile
        self.left: dict[int, float] = {}
        self.censored: dict[int, float] = {}
        self.epoch: float | None = None
        self.cached = math.inf
        self.changes = 0
        self.computed = -math.inf

    def exit(self, age: float, left: bool, now: float) -> None:
        """Somebody stopped waiting at this age: by leaving, or with an answer."""
        if self.epoch is None or now - self.epoch > 16 * self.half_life:
            self._rescale(now)
        counts = self.left if left else self.censored
        slot = _slot(age)
        counts[slot] = counts.get(slot, 0.0) + self._weight(now)
        self.changes += 16 if left else 1

    def seconds(self, now: float, waiting: Callable[[], Iterable[float]]) -> float:
        """The learned patience, or infinity. `waiting` gives the ages of those who still wait.

        Recomputed when enough has changed, at most once in 10 ms; and every second, because time alone unlearns.
        """
        if not self.left:
            return math.inf
        elapsed = now - self.computed
        if elapsed >= 1.0 or (self.changes >= 16 and elapsed >= 0.01):
            self.changes = 0
            self.computed = now
            self.cached = self._estimate(now, waiting())
        return self.cached

    def _weight(self, now: float) -> float:
        """Newer exits weigh more, instead of older ones less."""
        return math.exp2((now - (self.epoch or 0.0)) / self.half_life)

    def _rescale(self, now: float) -> None:
        if self.epoch is not None:
            factor = 1.0 / self._weight(now)
            for counts in (self.left, self.censored):
                for slot in list(counts):
                    counts[slot] *= factor
                    if counts[slot] < 1e-3:
                        del counts[slot]
        self.epoch = now

    def _estimate(self, now: float, waiting: Iterable[float]) -> float:
        weight = self._weight(now)
        exits = dict(self.censored)
        for age in waiting:
            if age >= _FIRST:
                slot = _slot(age)
                exits[slot] = exits.get(slot, 0.0) + weight
        for slot, count in self.left.items():
            exits[slot] = exits.get(slot, 0.0) + count
        at_risk = self.prior * weight
        survivors: dict[int, float] = {}
        for slot in sorted(exits, reverse=True):
            at_risk += exits[slot]
            survivors[slot] = at_risk
        alive = 1.0
        for slot in sorted(self.left):
            alive *= 1.0 - self.left[slot] / survivors[slot]
            if alive < self.quantile:
                return _FIRST * math.exp(slot * _GROWTH)
        return math.inf


class PatienceBook:
    """The patience of a service's tenants; those seen least recently are forgotten first."""

    __slots__ = ("leaving", "tenants")

    def __init__(self) -> None:
        self.tenants: dict[str, Patience] = {}
        self.leaving = False  # somebody has left

    def exit(self, tenant: str, age: float, left: bool, now: float) -> None:
        if age < _FIRST:
            return
        patience = self.tenants.get(tenant)
        if patience is None:
            if len(self.tenants) >= _TENANTS:
                del self.tenants[next(iter(self.tenants))]
            patience = self.tenants[tenant] = Patience()
        patience.exit(age, left, now)
        if left:
            self.leaving = True

    def hurried(self, tenant: str) -> bool:
        """Whether any of this tenant's callers has ever left."""
        return self.leaving and (patience := self.tenants.get(tenant)) is not None and bool(patience.left)

    def seconds(self, tenant: str, now: float, waiting: Callable[[], Iterable[float]]) -> float:
        patience = self.tenants.get(tenant)
        return math.inf if patience is None else patience.seconds(now, waiting)
