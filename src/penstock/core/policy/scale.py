"""How many replicas a service should have: from how long its calls queue, and from how busy its replicas are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Scale:
    """Between `minimum` and `maximum` replicas, for `replicas=` of a place.

    Up: when the oldest queued call has waited for more than `delay` seconds without a break for `up_after` seconds, half
    as many replicas again (at least one) are added. The least delay of a window, not its mean, tells a standing queue from
    a burst that drains by itself (CoDel; Nichols and Jacobson, ACM Queue 2012). Down: when for `down_after` seconds no call
    has waited that long and one replica less would have been busy for at most `busy` of the time (the utilisation law:
    mean number of busy replicas = arrival rate x service time), one is retired. A change starts both windows anew; the
    gap between the two rules is the hysteresis.
    """

    minimum: int = 1
    maximum: int = 8
    delay: float = 0.1
    up_after: float = 1.0
    down_after: float = 30.0
    busy: float = 0.7

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.maximum:
            raise ConfigError(f"Scale({self.minimum}, {self.maximum}): 1 <= minimum <= maximum")
        if self.delay < 0 or not self.up_after > 0 or not self.down_after >= self.up_after or not 0 < self.busy < 1:
            raise ConfigError("Scale: delay >= 0, 0 < up_after <= down_after, busy in (0, 1)")


class ScaleState:
    """The windows of one service."""

    __slots__ = ("area", "calm_since", "policy", "seen_at", "since", "waited_since")

    def __init__(self, policy: Scale) -> None:
        self.policy = policy
        self.since = self.seen_at = self.calm_since = -math.inf
        self.waited_since = math.inf
        self.area = 0.0  # replica-seconds of work since `since`

    def wanted(self, replicas: int, busy: float, delay: float, now: float) -> int:
        """How many replicas there should be. Asked a few times a second.

        `busy` of them run something now; the oldest queued call has waited for `delay` seconds for nothing but a replica.
        """
        policy = self.policy
        if self.since == -math.inf:
            self._anew(now)
        self.area += busy * (now - self.seen_at)
        self.seen_at = now
        if delay > policy.delay:
            self.calm_since = now
            self.waited_since = min(self.waited_since, now)
            if now - self.waited_since >= policy.up_after and replicas < policy.maximum:
                self._anew(now)
                return min(policy.maximum, replicas + max(1, replicas // 2))
        else:
            self.waited_since = math.inf
        if replicas < policy.minimum or replicas > policy.maximum:
            return min(max(replicas, policy.minimum), policy.maximum)
        elapsed = now - self.since
        if elapsed < policy.down_after:
            return replicas
        mean = self.area / elapsed
        calm = now - self.calm_since >= policy.down_after
        self.since, self.area = now, 0.0
        if calm and replicas > policy.minimum and mean <= policy.busy * (replicas - 1):
            self._anew(now)
            return replicas - 1
        return replicas

    def _anew(self, now: float) -> None:
        self.since = self.seen_at = self.calm_since = now
        self.waited_since = math.inf
        self.area = 0.0
