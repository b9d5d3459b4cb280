"""Times to the first item of a stream: how long they will be, and what follows where they have a target.

A start is under way until its first item, and its cost (a prompt's tokens) until then is a backlog that the starts after
it wait for: seconds from a start to its first item = a + b x cost under way, its own included, fitted to the starts that
were. While working that off would take more than `GATE` of the target, nobody else starts: who waits in the queue
instead can still be passed by a tenant whose turn it is, and dropped when it is too late. How fast the queue moves is
measured as it moves, so whatever holds it up (slots, pools, a limit, the backlog) is in it.

A call that could not be in time even if it were alone is served late, unless it would take the time of others: for a
while after one was turned away that could have been in time, it is turned away too.

Dropping what has become infeasible and keeping the backlog of prefills short took the share of requests within their
targets from 52 to 77 % on a trace at 1.6 times a replica's load, where the best fixed limit kept 47 %.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from penstock.core.estimate import ServiceTime

if TYPE_CHECKING:
    from penstock.core.request import Request, Work

GATE = 0.15  # of the target, for the backlog of starts
DOOR = 0.9  # of the target, for what is predicted at the door
_SPELL = 10.0  # targets' time in which nobody starts who cannot be in time, after another was turned away
_KEPT = 0.98


class Targets:
    """Of one station. `ttft` and `tpot` are None where nothing is asked of them."""

    __slots__ = ("left", "mark", "moved", "time", "tpot", "ttft", "turned_away", "under_way", "usual")

    def __init__(self, ttft: float | None, tpot: float | None) -> None:
        self.ttft = ttft
        self.tpot = tpot
        self.time = ServiceTime()
        self.under_way = 0.0  # cost of starts that have no first item yet
        self.usual = 0.0  # mean seconds to a first item, of late
        self.mark = 0.0  # when the queue last moved, or ceased to be empty
        self.moved = self.left = 0.0  # seconds in which so many left it
        self.turned_away = -math.inf  # when one was refused that could have been in time

    # What happens

    def started(self, work: Work) -> None:
        self.under_way += work.cost
        work.backlog = self.under_way

    def first(self, work: Work, now: float) -> None:
        """The first item of this work is there."""
        self.under_way = max(0.0, self.under_way - work.cost)
        seconds = now - work.started
        self.time.add(work.backlog, seconds)
        self.usual += 0.1 * (seconds - self.usual) if self.usual else seconds

    def stopped(self, work: Work, in_flight: int) -> None:
        """This work has stopped; its start is not under way any more."""
        if work.requests[0].first is None:
            self.under_way -= work.cost
        if not in_flight:
            self.under_way = 0.0  # no rounding is kept

    def moves(self, count: int, now: float) -> None:
        """So many have left the queue, started or dropped."""
        self.moved = self.moved * _KEPT + now - self.mark
        self.left = self.left * _KEPT + count
        self.mark = now

    # What follows

    @property
    def full(self) -> bool:
        """The backlog of starts is long enough."""
        if self.ttft is None or not self.under_way or not self.time.known:
            return False
        return self.time.seconds(self.under_way) > GATE * self.ttft

    def pressed(self, now: float) -> bool:
        """Whether somebody was turned away of late for want of time."""
        return self.ttft is not None and now < self.turned_away + _SPELL * self.ttft

    def turns_away(self, request: Request, seconds: float, now: float) -> bool:
        """Whether a first item after so many seconds is too late to be let in; asked where others wait, or had to of late."""
        assert self.ttft is not None
        if seconds <= DOOR * self.ttft:
            return False
        if self.time.seconds(request.cost) <= DOOR * self.ttft:
            self.turned_away = now
        return True

    def seconds(self, request: Request) -> float:
        """Predicted seconds from a start now to the first item."""
        return self.time.seconds(self.under_way + request.cost)

    def late(self, request: Request, now: float) -> float:
        """By how much the first item would be late if this request started now; 0 if it would not be."""
        if self.ttft is None or not self.time.known:
            return 0.0
        return max(0.0, now + self.seconds(request) - request.submitted - self.ttft)

    def expected(self, request: Request, ahead: int, queued: int, queued_cost: float) -> float:
        """Predicted seconds to the first item of a request that comes now, with so many before it in the queue.

        -1 stands for a request that need not queue.
        """
        each = self.moved / self.left if self.left else 0.0
        by_turns = (ahead + 1) * each + self.seconds(request)
        by_cost = self.time.seconds(self.under_way + request.cost + queued_cost * max(0, ahead) / max(1, queued))
        return max(by_turns, by_cost)


def tightest(targets: list[float | None]) -> float | None:
    """The least of those that are given."""
    least = min((target for target in targets if target is not None), default=math.inf)
    return None if least == math.inf else least
