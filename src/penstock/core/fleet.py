"""Which servers of a fleet are well enough to be given work: one circuit breaker each, and what they know of each other.

Two things keep a member out. It is *ejected* because of how its calls went (see `policy.breaker`), and it is *unhealthy* while
its health check fails; only the first is bounded, since nothing is gained by calling a server that says it is not there.
After an ejection it is *tried*, one call at a time. Calls that began before a member's last change say nothing about it now.

Calls that were all under way at one instant may have one cause, and it may be ours: while our own process stands still, every
remote looks slow. So slowness counts only when slow calls do not share an instant.

Pure: every method takes `now` and returns what changed; `wake_at` says when to call `tick`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from penstock.core.policy.breaker import Breaker

SERVING, TRIED, EJECTED = "serving", "tried", "ejected"
UNHEALTHY = "unhealthy"

_NOISE = 0.005  # seconds by which a slow member is slower than the others at least: a tenth of a millisecond is no fault
_FALLS = 2  # failed health checks in a row


class Change(NamedTuple):
    """A member's state is new. `why` is for people."""

    member: int
    state: str
    why: str


class Member:
    """One server. `median` is that of its latest calls, 0 while there are too few."""

    __slots__ = (
        "began",
        "checks",
        "ejections",
        "failed",
        "first",
        "good",
        "healthy",
        "index",
        "median",
        "state",
        "times",
        "until",
        "why",
    )

    def __init__(self, index: int, window: int) -> None:
        self.index = index
        self.state = SERVING
        self.healthy = True
        self.why = ""
        self.failed = 0  # calls in a row
        self.first = 0.0  # when the first of them did
        self.checks = 0  # failed ones in a row; -1 before the first
        self.good = 0  # calls since it is tried
        self.ejections = 0  # in a row
        self.times: deque[tuple[float, float]] = deque(maxlen=window)  # when its latest calls began and were answered
        self.median = 0.0
        self.began = -math.inf  # of calls that count
        self.until = math.inf

    @property
    def shown(self) -> str:
        """The state in one word."""
        return self.state if self.healthy else UNHEALTHY


class Fleet:
    """The members' breakers. A member that is given no work at all has `slots(index, all) == 0`."""

    def __init__(self, count: int, breaker: Breaker) -> None:
        self.breaker = breaker
        self.members = [Member(index, breaker.window) for index in range(count)]
        self.most = int(breaker.share * count + 1e-9)
        self.wake_at = math.inf

    def slots(self, index: int, every: int) -> int:
        """How many of this member's slots take work now."""
        member = self.members[index]
        if not member.healthy or member.state is EJECTED:
            return 0
        return 1 if member.state is TRIED else every

    # What happened

    def answered(self, index: int, began: float, now: float, whole: bool = True) -> Sequence[Change]:
        """A call that began at `began` got its answer; of a stream the first item, and it has yet to be `completed`."""
        member = self.members[index]
        if began < member.began or member.state is EJECTED:
            return ()
        if whole:
            member.failed = 0
        seconds = now - began
        if member.state is TRIED:
            usual = self._usual(member)
            if usual and self._slow(seconds, usual):
                return self._eject(member, f"still slow, {seconds:.3g} s where others take {usual:.3g} s", now)
            member.good += 1
            if member.good < self.breaker.trials:
                return ()
            member.state, member.why = SERVING, ""
            return (Change(index, SERVING, f"{member.good} good calls"),)
        member.times.append((began, now))
        if len(member.times) >= max(1, self.breaker.window // 4):
            member.median = sorted([end - start for start, end in member.times])[len(member.times) // 2]
        if len(member.times) == self.breaker.window:
            usual = self._usual(member)
            if usual and self._slow(member.median, usual) and self._repeated(member, usual):
                why = (
                    f"slow, {member.median:.3g} s in the median of {self.breaker.window} calls where others take {usual:.3g} s"
                )
                return self._eject(member, why, now)
        return ()

    def completed(self, index: int, began: float) -> None:
        """A stream came to its end."""
        member = self.members[index]
        if began >= member.began:
            member.failed = 0

    def failed(self, index: int, began: float, why: str, now: float, late: bool = False) -> Sequence[Change]:
        """A call failed through the fault of this member; `late` is one that nobody waited for any longer."""
        member = self.members[index]
        if began < member.began or member.state is EJECTED:
            return ()
        member.failed += 1
        member.good = 0
        if member.failed == 1:
            member.first = now
        if member.state is TRIED:
            return self._eject(member, f"still failing: {why}", now)
        if member.failed < self.breaker.failures or (late and began < member.first):
            return ()
        return self._eject(member, f"{member.failed} calls in a row failed, the last one with: {why}", now)

    def late(self, index: int, began: float, now: float) -> bool:
        """Whether a call that nobody waits for any more has taken longer than it should have."""
        usual = self._usual(self.members[index])
        return bool(usual) and self._slow(now - began, usual)

    def checked(self, index: int, why: str, now: float, first: bool = False) -> Sequence[Change]:
        """A health check came back; `why` it failed, or "". Two in a row make a member unhealthy, one well again."""
        member = self.members[index]
        member.checks = member.checks + 1 if why else 0
        if not why and not member.healthy:
            member.healthy, member.began = True, now
            member.failed = 0
            if member.state is SERVING:
                member.why = ""
            return (Change(index, member.state, "its health check passes"),)
        if why and member.healthy and (first or member.checks >= _FALLS):
            member.healthy, member.why = False, why
            return (Change(index, UNHEALTHY, why), *self._relieve(now))
        return ()

    def tick(self, now: float) -> Sequence[Change]:
        """Ejections that are over become trials."""
        changes = []
        for member in self.members:
            if member.state is EJECTED and member.until <= now:
                changes.append(self._try(member, now))
        self._rewake()
        return changes

    # What follows

    def _usual(self, member: Member) -> float:
        """The median of the other members' medians; 0 while too little is known of them."""
        medians = sorted([m.median for m in self.members if m is not member and m.median and m.state is SERVING and m.healthy])
        return medians[(len(medians) - 1) // 2] if medians else 0.0

    def _repeated(self, member: Member, usual: float) -> bool:
        """Whether two of the slow calls came one after the other."""
        slow = [(start, end) for start, end in member.times if self._slow(end - start, usual)]
        return max(start for start, _ in slow) > min(end for _, end in slow)

    def _slow(self, seconds: float, usual: float) -> bool:
        return seconds > self.breaker.slow * usual and seconds > usual + _NOISE

    def _eject(self, member: Member, why: str, now: float) -> Sequence[Change]:
        out = sum(1 for m in self.members if m is not member and (m.state is EJECTED or not m.healthy))
        if out >= self.most:
            return ()
        if member.state is SERVING and now - member.began > 2 * self.breaker.out(member.ejections or 1):
            member.ejections = 0  # it was well for long enough
        member.ejections += 1
        member.state, member.why = EJECTED, why
        member.until = now + self.breaker.out(member.ejections)
        member.began = math.inf
        self._rewake()
        return (Change(member.index, EJECTED, why),)

    def _try(self, member: Member, now: float) -> Change:
        member.state, member.began = TRIED, now
        member.until = math.inf
        member.good = member.failed = 0
        member.times.clear()
        member.median = 0.0
        return Change(member.index, TRIED, member.why)

    def _relieve(self, now: float) -> Sequence[Change]:
        """More are out than may be: who was ejected first is tried before its time."""
        changes = []
        ejected = sorted((m for m in self.members if m.state is EJECTED and m.healthy), key=lambda m: m.until)
        unhealthy = sum(1 for m in self.members if not m.healthy)
        for member in ejected[: max(0, unhealthy + len(ejected) - self.most)]:
            changes.append(self._try(member, now))
        self._rewake()
        return changes

    def _rewake(self) -> None:
        self.wake_at = min((m.until for m in self.members if m.state is EJECTED), default=math.inf)
