"""How long callers wait before they leave: learned, so that work is not done for callers who will be gone.

Patience is the greatest age that 90 % of callers outlive, by the Kaplan-Meier estimate of survival (Kaplan and Meier,
1958): a caller who left before the first output is an event at its age; one that was answered, and one that still
waits, is censored at its age.

Each age keeps its own memory. What is known of an age is replaced by what newer callers of that age do: the share that
left is an average over the last few hundred who reached it, so a change is noticed after some thirty departures, however
long the history. Ages that nobody reaches any more, because calls that would wait so long are refused, keep what is
known of them: time alone lets it fade slowly, and a refusal that has left a replica idle lets all of it be learned anew.
A prior of callers who never leave keeps a few early quitters from deciding.

Some are gone too early for any queue to matter. Who leaves before an answer could have been ready has shown no patience
that one could work with, and is left to `hangups`. And those who leave before two could have been, or within what a busy
loop takes to see that they are gone, say something of the others only if they are half of all; else the question is how
long those stay who outlive that. Or a few in a hurry, and such as had left when they were read, would shut out all who wait.

Many who leave in one instant at all sorts of ages have not run out of patience: their program ended, or a network went.
They count as one.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial

from penstock.core.hangups import HangUps
from penstock.core.request import Request
from penstock.errors import Overloaded

_FIRST = 1e-3  # seconds: exits before this age say nothing about waiting
_GROWTH = math.log(1.05)  # resolution of ages: 5 %
_BINS = 283  # up to about 1000 s
_TENANTS = 1024
_INSTANT = 1e-3  # seconds between two who leave together, or are refused for the same
_MANY = 8
_EARLY = 0.05  # seconds, or two answers' time if that is longer
_HALF = 0.5
_ALIKE = math.log(1.25)  # ages that one patience may show as

Sample = tuple[Sequence[float], int]  # ages, and how many callers each stands for

_slot: Callable[[float], int] = partial(bisect, [_FIRST * math.exp(slot * _GROWTH) for slot in range(1, _BINS + 1)])


class Patience:
    """One tenant's exits, by age in seconds. Of each age, about `memory` callers are remembered."""

    __slots__ = (
        "cached",
        "changes",
        "computed",
        "exits",
        "half_life",
        "hurried",
        "left",
        "memory",
        "prior",
        "quantile",
        "reached",
        "together",
        "together_at",
        "unhurried",
        "went",
    )

    def __init__(self, half_life: float = 60.0, memory: float = 200.0, prior: float = 20.0, quantile: float = 0.9) -> None:
        self.half_life = half_life
        self.memory = memory
        self.prior = prior
        self.quantile = quantile
        self.reached = array("d")  # callers who reached this age, as far as they are remembered
        self.left = array("d")  # those of them who left at it
        self.exits: defaultdict[int, int] = defaultdict(int)  # since the last estimate
        self.went: defaultdict[int, int] = defaultdict(int)  # those of them who left
        self.together: list[float] = []  # ages of those who have just left, one close upon the other
        self.together_at = -math.inf
        self.hurried = False  # somebody has left
        self.unhurried: deque[float] = deque(maxlen=int(2.5 * memory))  # ages of those who were answered before that
        self.cached = math.inf
        self.changes = 0
        self.computed = -math.inf

    def exit(self, age: float, left: bool, now: float, dropped: bool = False) -> None:
        """Somebody stopped waiting at this age: by leaving, or with an answer.

        `dropped`: refused at this age for what is believed here, which proves nothing about this age.
        """
        if left:
            if not self.hurried:
                self.hurried = True
                for each in self.unhurried:
                    self.exits[_slot(each)] += 1
                self.unhurried.clear()
            if now - self.together_at > _INSTANT or len(self.together) >= 512:
                self._part()
            self.together.append(age)
            self.together_at = now
            self.changes += 16
        else:
            self.exits[_slot(age) - dropped] += 1
            self.changes += 1

    def _part(self) -> None:
        """Those who left together are complete: say what it tells."""
        ages = self.together
        if not ages:
            return
        counted = len(ages)
        if counted >= _MANY:
            alike: dict[int, int] = {}
            for age in ages:
                place = int(math.log(age) / _ALIKE)
                alike[place] = alike.get(place, 0) + 1
            if max(alike.values()) < 0.4 * counted:
                counted = 1
        for n, age in enumerate(ages):
            slot = _slot(age)
            self.exits[slot] += 1
            if n < counted:
                self.went[slot] += 1
        ages.clear()

    def seconds(self, now: float, waiting: Callable[[], Sample], early: float = 0.0) -> float:
        """The learned patience, or infinity. `waiting` gives the ages of those who still wait, or of a sample of them.

        Those who leave before the age `early` count if they are half of all.
        Recomputed when enough has changed, at most once in 10 ms; and every second, because time alone unlearns.
        """
        if not self.hurried:
            return math.inf
        if now - self.together_at > _INSTANT:
            self._part()
        elapsed = now - self.computed
        if elapsed >= 1.0 or (self.changes >= 16 and elapsed >= 0.01):
            self.changes = 0
            self._fold(0.5 ** (elapsed / self.half_life))
            self.computed = now
            self.cached = self._estimate(waiting(), early)
        return self.cached

    def _fold(self, fade: float) -> None:
        """Take in the exits since the last time: an exponential average over callers, at each age they reached."""
        left, reached = self.left, self.reached
        top = max(self.exits, default=-1) + 1
        if top > len(left):
            for counts in (left, reached):
                counts.extend([0.0] * (top - len(counts)))
        for slot in range(top, len(left)):
            left[slot] *= fade
            reached[slot] *= fade
        came, kept, gained = 0, 1.0, 0.0
        for slot in range(top - 1, -1, -1):
            if slot in self.exits:
                came += self.exits[slot]
                kept = math.exp(-came / self.memory)
                gained = self.memory * (1.0 - kept)
                kept *= fade
            reached[slot] = reached[slot] * kept + gained
            left[slot] *= kept
            if slot in self.went:
                left[slot] += gained * self.went[slot] / came
        self.exits.clear()
        self.went.clear()

    def _estimate(self, waiting: Sample, early: float) -> float:
        left = self.left
        at_risk = [self.prior + reached for reached in self.reached]
        older = [0] * (_BINS + 1)
        ages, each = waiting
        for age in ages:
            if age >= _FIRST:
                older[_slot(age)] += each
        beyond = sum(older)
        alive, enough, late = 1.0, _HALF, _slot(early)
        for slot, count in enumerate(left):
            if slot == late:
                alive, enough = 1.0, self.quantile
            if count:
                alive *= 1.0 - count / (at_risk[slot] + beyond)
                if alive < enough:
                    return _FIRST * math.exp(slot * _GROWTH)
            beyond -= older[slot]
        return math.inf


class Refused:
    """The latest refusal for want of patience. Many calls that come in one moment are told the same, at half the cost."""

    __slots__ = ("at", "message", "priority", "queued", "retry_after", "tenant", "waited")

    def __init__(self, request: Request, queued: int, now: float, error: Overloaded) -> None:
        self.tenant, self.priority = request.tenant, request.priority
        self.queued, self.waited = queued, request.waited
        self.at = now
        self.message, self.retry_after = str(error), error.retry_after

    def again(self, request: Request, queued: int, now: float) -> bool:
        """Whether it holds for this request: so soon, and behind as many."""
        return (
            now - self.at < _INSTANT
            and queued == self.queued
            and request.waited >= self.waited
            and request.tenant == self.tenant
            and request.priority == self.priority
            and request.deadline is None
        )

    def error(self) -> Overloaded:
        """A new one: what is raised holds the frames that it passed."""
        return Overloaded(self.message, retry_after=self.retry_after)


class PatienceBook:
    """The patience of a service's tenants; those seen least recently are forgotten first."""

    __slots__ = ("hangups", "leaving", "refused", "tenants")

    def __init__(self, hangups: HangUps) -> None:
        self.refused: Refused | None = None
        self.hangups = hangups
        self.tenants: dict[str, Patience] = {}
        self.leaving = False  # somebody has left

    def exit(self, tenant: str, age: float, left: bool, now: float, dropped: bool = False) -> None:
        hangups = self.hangups
        if age < _FIRST and not (left or dropped or hangups.runs):
            return
        patience = self.tenants.get(tenant)
        if left:
            hangups.left(tenant, age)
            left = age >= hangups.start_seconds()
        elif patience is not None:
            if dropped:
                hangups.refused(tenant, patience.cached)
            elif hangups.runs and hangups.answered(tenant, age, patience.cached):
                patience = None
                self.forget(tenant)
            elif not patience.hurried and age >= _FIRST:
                patience.unhurried.append(age)  # as most calls are; looked at if ever anybody leaves
                return
        if age < _FIRST:
            return
        if patience is None:
            if len(self.tenants) >= _TENANTS:
                del self.tenants[next(iter(self.tenants))]
            patience = self.tenants[tenant] = Patience()
        patience.exit(age, left, now, dropped)
        if left:
            self.leaving = True

    def hurried(self, tenant: str) -> bool:
        """Whether any of this tenant's callers has ever left."""
        patience = self.tenants.get(tenant)
        return patience is not None and patience.hurried

    def seconds(self, tenant: str, now: float, waiting: Callable[[], Sample]) -> float:
        patience = self.tenants.get(tenant)
        return math.inf if patience is None else patience.seconds(now, waiting, max(_EARLY, 2 * self.hangups.start_seconds()))

    def forget(self, tenant: str) -> None:
        self.tenants.pop(tenant, None)
