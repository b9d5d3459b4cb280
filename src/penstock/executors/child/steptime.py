"""How long a step takes: seconds = base + price x units of starts, followed as both change.

The base drifts with how many requests are under way, and whoever plans steps by this fit keeps them equally long, so that
over many steps units and seconds show no relation at all (identification in a closed loop). From one step to the next the
drift is small: the price is the least-squares slope of the differences between consecutive steps, exponentially
forgotten, and the base what it leaves. A price that is too low or too high only changes how fast a plan that is made with
both comes to the length that was asked for: what the one says too much the other says too little.
"""

from __future__ import annotations

_KEPT = 0.98  # of what is known, at each step with starts
_QUICK = 0.2


class StepTime:
    """Of one model. Both are 0 while nothing is known of them."""

    __slots__ = ("base", "covariance", "last", "price", "variance")

    def __init__(self) -> None:
        self.base = 0.0
        self.price = 0.0
        self.covariance = self.variance = 0.0
        self.last = (0, 0.0)  # units and seconds of the step before

    def add(self, units: int, seconds: float) -> None:
        """A step took so long, in which so many units of starts were worked off."""
        before, took = self.last
        self.last = units, seconds
        if (units or before) and took:
            more = units - before
            self.covariance = self.covariance * _KEPT + more * (seconds - took)
            self.variance = self.variance * _KEPT + more * more
            if self.variance:
                self.price = max(0.0, self.covariance / self.variance)
        rest = max(0.0, seconds - self.price * units)
        self.base = self.base + _QUICK * (rest - self.base) if self.base else rest

    def units(self, seconds: float) -> float:
        """How many units a step of this length can take; 0 while it cannot be told."""
        return (seconds - self.base) / self.price if self.price and self.base else 0.0
