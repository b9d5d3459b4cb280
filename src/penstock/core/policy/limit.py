"""How much may be in flight. Limits compose: work starts when every one of them has room.

A policy is the frozen declaration; `state()` makes the small machine that counts. In flight means started and not
yet stopped, batches counting as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from penstock.core.policy.declared import number, whole
from penstock.errors import ConfigError


class LimitState(Protocol):
    """`hard` limits can be waited for in a circle, so they take part in deadlock detection; `soft` ones let nested calls by.

    While fewer than `n` are in flight there is no need to ask `ready_at`; 0 where it must always be asked.
    """

    n: float
    hard: bool
    soft: bool

    def ready_at(self, in_flight: int, now: float) -> float:
        """When one more may start: `now` if it may already, infinity if only an end can make room."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """At most `n` in flight."""

    n: int

    def __post_init__(self) -> None:
        whole("Fixed(n)", self.n)

    def state(self) -> FixedState:
        return FixedState(self.n)


class FixedState:
    __slots__ = ("hard", "n", "soft")

    def __init__(self, n: int) -> None:
        self.n: float = n
        self.hard = True
        self.soft = False

    def ready_at(self, in_flight: int, now: float) -> float:
        return now if in_flight < self.n else math.inf


@dataclass(frozen=True, slots=True)
class AIMD:
    """Additive increase, multiplicative decrease on missed targets; the default.

    Every `window` seconds: if more than `tolerance` of the calls that ended missed their deadline, or streams took more
    than `tpot` seconds an item on average, the limit becomes `backoff` x (the most that was in flight); else, if at
    least half of the limit was used, limit + 1. It is open until the first bad window, so a service whose callers set no
    deadlines is never limited by it. The rule is that of Netflix's concurrency-limits with missed targets as its only
    signal: on traces of LLM traffic it kept 87 % of requests within their target where latency-gradient rules kept 23
    to 86 %.

    `ttft` is the target for the first item of a stream, in seconds since the call: who would be later is refused with
    Overloaded (503), at the door or when its turn comes, and starts wait while others' take long (`core.targets`). Fewer
    at once would make first items only later, so they do not count for the limit. With `tpot`, a model with slots takes
    as much of starts into a step as keeps the step within it.
    """

    minimum: int = 1
    maximum: int = 10_000
    backoff: float = 0.9
    tolerance: float = 0.1
    window: float = 1.0
    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        whole("AIMD(minimum=...)", self.minimum)
        whole("AIMD(maximum=...)", self.maximum)
        if self.minimum > self.maximum:
            raise ConfigError(f"AIMD(minimum={self.minimum}, maximum={self.maximum}): minimum <= maximum")
        number("AIMD(backoff=...)", self.backoff, above=0, below=1)
        number("AIMD(tolerance=...)", self.tolerance, least=0, below=1)
        number("AIMD(window=...)", self.window, "seconds", above=0)
        number("AIMD(ttft=...)", self.ttft, "seconds", above=0, below=math.inf, optional=True)
        number("AIMD(tpot=...)", self.tpot, "seconds", above=0, below=math.inf, optional=True)

    def state(self) -> AIMDState:
        return AIMDState(self)


class AIMDState:
    __slots__ = ("ends", "hard", "items", "misses", "n", "opened", "peak", "policy", "soft", "spent")

    def __init__(self, policy: AIMD) -> None:
        self.policy = policy
        self.n = math.inf
        self.hard = False
        self.soft = True  # nested calls count but do not wait: shedding belongs to the root
        self.opened = -math.inf
        self.ends = self.misses = self.peak = self.items = 0
        self.spent = 0.0  # seconds between items

    def ready_at(self, in_flight: int, now: float) -> float:
        return now if in_flight < self.n else math.inf

    def ended(self, in_flight: int, missed: bool, now: float) -> None:
        """One of `in_flight` has ended, or begun to answer: in time, or too late.

        Between two ends the number only grows, so its peaks are seen here.
        """
        self.ends += 1
        self.misses += missed
        self._look(in_flight, now)

    def paced(self, items: int, seconds: float, in_flight: int, now: float) -> None:
        """Streams gave so many items, each so long after the one before it that together it is `seconds`."""
        self.items += items
        self.spent += seconds
        self._look(in_flight, now)

    def _look(self, in_flight: int, now: float) -> None:
        if in_flight > self.peak:
            self.peak = in_flight
        if now - self.opened >= self.policy.window:
            self._close(now)

    def _close(self, now: float) -> None:
        policy = self.policy
        missed = self.misses > policy.tolerance * self.ends
        if policy.tpot is not None and self.spent > policy.tpot * self.items:
            missed = True
        if missed and self.opened > -math.inf:
            base = min(self.n, self.peak)
            self.n = min(max(float(policy.minimum), math.floor(base * policy.backoff)), policy.maximum)
        elif self.n < math.inf and 2 * self.peak >= self.n:
            self.n = min(self.n + 1, policy.maximum)
        self.opened = now
        self.ends = self.misses = self.peak = self.items = 0
        self.spent = 0.0


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `per_second` starts a second on average, `burst` at once, and never two closer than `min_gap` seconds.

    The generic cell rate algorithm (ITU-T I.371): with T = 1/per_second and a theoretical arrival time TAT, a start
    conforms at t >= TAT - (burst - 1) x T, and sets TAT = max(t, TAT) + T. One account for all callers of a service.
    """

    per_second: float = math.inf
    burst: int = 1
    min_gap: float = 0.0

    def __post_init__(self) -> None:
        whole("Rate(burst=...)", self.burst)
        number("Rate(per_second=...)", self.per_second, above=0)
        number("Rate(min_gap=...)", self.min_gap, "seconds", least=0, below=math.inf)
        if self.burst > 1 and self.min_gap >= 1 / self.per_second:
            raise ConfigError(
                f"Rate(per_second={self.per_second:g}, burst={self.burst}, min_gap={self.min_gap:g}): the gap is not "
                "shorter than the mean interval, so a burst can never happen; use burst=1"
            )
        if math.isinf(self.per_second) and self.min_gap == 0:
            raise ConfigError("Rate: give per_second or min_gap")

    def state(self) -> RateState:
        return RateState(self)


class RateState:
    __slots__ = ("hard", "interval", "last", "n", "policy", "soft", "tat")

    def __init__(self, policy: Rate) -> None:
        self.policy = policy
        self.n = 0.0
        self.hard = False  # frees up by itself as time passes, so nobody can wait for it in a circle
        self.soft = False
        self.interval = 1.0 / policy.per_second
        self.tat = -math.inf
        self.last = -math.inf

    def ready_at(self, in_flight: int, now: float) -> float:
        conforms = self.tat - (self.policy.burst - 1) * self.interval
        return max(now, conforms, self.last + self.policy.min_gap)

    def started(self, now: float) -> None:
        self.tat = max(now, self.tat) + self.interval
        self.last = now


Limit = Fixed | AIMD | Rate
