"""One work, and everybody who waits for it.

The work is a call of its own, in a task or executor of its own, so that it outlives whoever began it. Its deadline is
the latest of those who wait; it is cancelled when the last has left. Every caller has one line in the log, whatever
happens: the work's own line is that of its *owner*, the first who waits, and passes to the next when the owner leaves.

Nobody waits in a circle: a caller joins a work only if it holds nothing that the work's beginner did not hold, and if
the work does not wait for the caller in its turn. Otherwise it starts its own, as if there were no cache.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from penstock.context import Budget
from penstock.core.request import ENDED
from penstock.core.timeouts import redate
from penstock.errors import DeadlineExceeded
from penstock.runtime.call import BoundCall

if TYPE_CHECKING:
    from penstock.runtime.shared import SharedCall, Sharing

_NOW = (0.0, 0.0, 0.0, 0.0)
_OUTCOMES = {True: "cancelled", False: "failed"}


class Work(BoundCall):
    """The call that does the work of its flight."""

    __slots__ = ("flight",)

    flight: Flight | None  # until it has ended


class Flight:
    """One work, and everybody who waits for it; the first of them owns it."""

    __slots__ = ("held", "key", "sharing", "waiters", "waits", "work")

    def __init__(self, sharing: Sharing, key: Hashable, first: SharedCall) -> None:
        self.sharing = sharing
        self.key = key
        self.waiters: dict[SharedCall, None] = {}
        self.waits: dict[Flight, None] = {}  # flights that this one's work waits for
        self.held = _held(first)
        budget, request = first.budget, first.request
        lasting = Budget(None, budget.priority, budget.tenant)  # what runs inside does not end with the first caller
        self.work = Work(first.binding, first.args, first.kwargs, lasting, first.frame, request.id, request.size)
        self.work.flight = self
        self.work.request.deadline = budget.deadline
        other = sharing.flights.get(key)
        if other is None or budget.priority < other.work.budget.priority:
            sharing.flights[key] = self

    def takes(self, call: SharedCall) -> bool:
        """Whether this caller may wait for this work."""
        if call.budget.priority < self.work.budget.priority:
            return False
        if call.frame is None or call.frame.request is None:
            return True
        return _held(call) <= self.held and not self._leads_to(_inside(call))

    def _leads_to(self, flights: list[Flight]) -> bool:
        """Whether the work waits, directly or not, for one of these."""
        seen: dict[Flight, None] = {}
        ahead = [self]
        while ahead:
            flight = ahead.pop()
            if flight in flights:
                return True
            if flight not in seen:
                seen[flight] = None
                ahead += flight.waits
        return False

    def join(self, call: SharedCall) -> None:
        first = not self.waiters
        self.waiters[call] = None
        for flight in _inside(call):
            flight.waits[self] = None
        if not first:
            self._redate()
        else:
            try:
                self.work.add_done_callback(self._done)  # starts it
            except BaseException:  # the user's cost= or size= failed
                del self.waiters[call]
                self._forget(call)
                self._unlist()
                raise
        if call.budget.deadline is not None:
            self._watch(call)

    def leave(self, call: SharedCall, outcome: str, error: str = "") -> None:
        """This caller does not wait any more. The last one's leaving ends the work, whose line is then theirs."""
        if call not in self.waiters:
            return
        owner = next(iter(self.waiters))
        del self.waiters[call]
        self._forget(call)
        if not self.waiters:
            self._unlist()
            self.work.cancel()
            self._owned(call, outcome)
            return
        call.close(outcome, "shared", call.elapsed(), error)
        if call is owner:
            heir = next(iter(self.waiters))
            self.work.request.id, self.work.request.root = heir.request.id, heir.request.root
            self.work.frame = heir.frame
        self._redate()

    def _forget(self, call: SharedCall) -> None:
        for flight in _inside(call):
            flight.waits.pop(self, None)

    def _unlist(self) -> None:
        if self.sharing.flights.get(self.key) is self:
            del self.sharing.flights[self.key]

    def _owned(self, call: SharedCall, outcome: str) -> None:
        """The work's line is this caller's."""
        call.request.outcome, call.request.state = outcome, ENDED
        call.measured = self.work.parts() if self.work.request.ended else call.elapsed()

    # Deadlines

    def _redate(self) -> None:
        """The work's deadline is the latest of those who wait."""
        dates = [call.budget.deadline for call in self.waiters]
        latest = None if None in dates else max(date for date in dates if date is not None)
        request, runtime = self.work.request, self.work.binding.runtime
        if latest != request.deadline:
            redate(runtime.scheduler, request, latest)
            runtime.arm()

    def _watch(self, call: SharedCall) -> None:
        """End this caller's waiting at its own deadline, if others make the work go on beyond it."""
        runtime, deadline = call.binding.runtime, call.budget.deadline
        assert deadline is not None
        left = deadline - runtime.clock()
        if left > 0:
            call.timer = runtime.loop.call_later(max(left, 0.001), self._watch, call)
        elif call in self.waiters and len(self.waiters) > 1 and self.work.request.deadline != deadline:
            message = f"{call.binding.name}: not answered by its deadline, {call.elapsed()[0]:.3f} s after it was sent"
            self.leave(call, "expired", "DeadlineExceeded")
            if call.future is not None and not call.future.done():
                call.future.set_exception(DeadlineExceeded(message))

    # The end

    def _done(self, work: BoundCall) -> None:
        self._unlist()
        self.work.flight = None
        error = None if work.cancelled() else work.exception()
        if not work.cancelled() and error is None:
            self.sharing.kept.put(self.key, work.result(), work.binding.runtime.clock())
        outcome = work.request.outcome or _OUTCOMES[work.cancelled()]
        _, batched, ran, _ = work.parts() if work.request.ended else _NOW
        waiters, self.waiters = list(self.waiters), {}
        for n, call in enumerate(waiters):
            self._forget(call)
            if n == 0:
                self._owned(call, outcome)
            else:
                waited = call.elapsed()[0]
                inside = min(ran, waited)
                apart = min(batched, waited - inside)
                parts = (waited - inside - apart, apart, inside, 0.0)
                call.close(outcome, "shared", parts, "" if error is None else type(error).__name__)
            self._answer(call, work, error)

    def _answer(self, call: SharedCall, work: BoundCall, error: BaseException | None) -> None:
        future = call.future
        if future is None or future.done():
            return
        if work.cancelled():
            future.cancel()
        elif error is None:
            future.set_result(work.result())
        else:
            future.set_exception(error)
            future.exception()  # looked at: a caller that is cancelled in this very moment never will


def _held(call: SharedCall) -> frozenset[str]:
    """The pools that this caller's own callers hold."""
    request = None if call.frame is None else call.frame.request
    if request is None:
        return frozenset()
    return frozenset(request.held) | frozenset(() if request.station is None else request.station.nodes)


def _inside(call: BoundCall) -> list[Flight]:
    """The flights whose works this call is made by, directly or not."""
    found = []
    frame = call.frame
    while frame is not None and frame.request is not None:
        caller = frame.request.item
        if caller is None:
            break
        if isinstance(caller, Work) and caller.flight is not None:
            found.append(caller.flight)
        frame = caller.frame
    return found
