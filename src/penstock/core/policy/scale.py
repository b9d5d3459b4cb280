"""How many replicas a service should have: from how long its calls queue, and from how busy its replicas are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.core.policy.declared import number, whole
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
        whole("Scale(minimum=...)", self.minimum)
        whole("Scale(maximum=...)", self.maximum)
        number("Scale(delay=...)", self.delay, "seconds", least=0)
        number("Scale(up_after=...)", self.up_after, "seconds", above=0)
        number("Scale(down_after=...)", self.down_after, "seconds", above=0)
        number("Scale(busy=...)", self.busy, above=0, below=1)
        if self.minimum > self.maximum:
            raise ConfigError(f"Scale({self.minimum}, {self.maximum}): minimum <= maximum")
        if self.down_after < self.up_after:
            raise ConfigError(f"Scale(up_after={self.up_after:g}, down_after={self.down_after:g}): up_after <= down_after")

    def state(self) -> ScaleState:
        return ScaleState(self)


@dataclass(frozen=True, slots=True)
class Elastic:
    """A replica for each call, where one costs little: at once as many as run or wait, between `minimum` and `maximum`.

    What more than `keep` seconds have not needed goes: at the end of each such window there are as many as it needed at its
    most.
    """

    minimum: int = 1
    maximum: int = 1000
    keep: float = 10.0

    def __post_init__(self) -> None:
        whole("Elastic(minimum=...)", self.minimum)
        whole("Elastic(maximum=...)", self.maximum)
        number("Elastic(keep=...)", self.keep, "seconds", least=0)

    def state(self) -> ElasticState:
        return ElasticState(self)


class ElasticState:
    """The window of one service."""

    __slots__ = ("most", "policy", "since")

    def __init__(self, policy: Elastic) -> None:
        self.policy = policy
        self.since = -math.inf
        self.most = 0

    def wanted(self, replicas: int, busy: float, delay: float, now: float, queued: int = 0) -> int:
        """How many replicas there should be. Asked when a call queues, and a few times a second."""
        policy, needed = self.policy, math.ceil(busy) + queued
        self.most = max(self.most, needed)
        if needed > replicas:
            return min(policy.maximum, needed)
        if now - self.since < policy.keep:
            return replicas
        first, most = self.since == -math.inf, self.most
        self.since, self.most = now, needed
        return replicas if first else max(policy.minimum, min(replicas, most))


class ScaleState:
    """The windows of one service."""

    __slots__ = ("area", "calm_since", "policy", "seen_at", "since", "waited_since")

    def __init__(self, policy: Scale) -> None:
        self.policy = policy
        self.since = self.seen_at = self.calm_since = -math.inf
        self.waited_since = math.inf
        self.area = 0.0  # replica-seconds of work since `since`

    def wanted(self, replicas: int, busy: float, delay: float, now: float, queued: int = 0) -> int:
        """How many replicas there should be. Asked a few times a second.

        `busy` of them run something now; `queued` calls wait for nothing but a replica, the oldest for `delay` seconds.
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
