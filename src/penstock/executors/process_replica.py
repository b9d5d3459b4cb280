"""One replica of a process service that runs works, one at a time.

What is staged waits here, encoded, so that only a write remains when the answer before it arrives; the next batch goes
out before that answer is read. A work that is run again in parts stays one work, and keeps its slot and its lease.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from penstock.errors import InvalidRequest, PenstockError, ServiceError, WorkerLost
from penstock.executors.child.wire import OUTGROWN, Frame
from penstock.executors.process_child import Child, results_of
from penstock.executors.process_life import GivenUp
from penstock.executors.process_peak import Peak
from penstock.executors.process_renewal import Renewal
from penstock.executors.process_supervisor import Supervisor
from penstock.executors.process_trial import Trial
from penstock.executors.process_unit import Unit

if TYPE_CHECKING:
    from penstock.executors.process import ProcessExecutor

log = logging.getLogger("penstock")


class Replica(Supervisor):
    """A slot and its process."""

    owner: ProcessExecutor

    def __init__(self, owner: ProcessExecutor, index: int) -> None:
        super().__init__(owner, index)
        self.running: Unit | None = None
        self.staged: Unit | None = None
        self.waiting: tuple[Any, Trial] | None = None  # goes on as soon as a process is up
        self.numbers = self.works = 0
        self.renewal = Renewal(self)
        self.recycles = owner.options.recycle is not None or owner.options.recycle_bytes is not None
        self.peak = Peak(owner.host) if owner.measure else None

    # Work

    def prepare(self, work: Any, trial: Trial | None = None) -> Unit:
        """A unit of this work, or of the next part of it, encoded for the current process."""
        unit = Unit(work, trial, self.owner.buffer)
        self.encode(unit)
        return unit

    def encode(self, unit: Unit) -> None:
        """For the current process."""
        self.numbers += 1
        if self.child is None:
            unit.error = WorkerLost(f"{self.title} has just died")
        else:
            unit.encode(self.owner.body, self.child, self.numbers)

    def run(self, work: Any) -> None:
        """Begin this work; the replica is free."""
        if self.peak is not None:
            self.peak.begin(self.child)
        self.send(self.prepare(work))

    def send(self, unit: Unit) -> None:
        """Let the child run this; what could not be encoded ends soon."""
        self.running = unit
        self.stalled = 0.0
        if unit.encoded is not None and self.child is not None:
            self.child.run(unit.encoded)
            unit.encoded = None
        else:
            self.owner.loop.call_soon(self._refuse, unit)

    def _refuse(self, unit: Unit) -> None:
        """What could not be encoded ends here; in a batch only the items that are to blame for it."""
        if self.running is not unit or unit.error is None:
            return
        self.running = None
        if isinstance(unit.error, InvalidRequest) and len(unit.part) > 1:
            trial = unit.trial or Trial(len(unit.work.requests))
            trial.halve()
            self.proceed(unit.work, trial)
        elif unit.trial is not None:
            unit.trial.answered([unit.error] * len(unit.part))
            self.proceed(unit.work, unit.trial)
        else:
            self.finish(unit.work, [unit.error] * len(unit.part))

    def stage(self, work: Any) -> None:
        """Keep this work ready for the child."""
        unit = self.staged = self.prepare(work)
        if self.running is None and self.waiting is None:
            self.owner.loop.call_soon(self._take, unit)

    def _take(self, unit: Unit) -> None:
        if self.staged is unit and self.running is None and self.waiting is None:
            self.staged = None
            self.send(unit)
            self.owner.host.taken(unit.work)

    def unstage(self) -> Any:
        """Take back what is staged, if anything is."""
        unit, self.staged = self.staged, None
        if unit is None:
            return None
        if unit.encoded is not None and self.child is not None:
            self.child.forget(unit.encoded)
        return unit.work

    def done(self, child: Child, frame: Frame) -> None:
        """The child has answered: the next work goes out before the answer is read."""
        unit = self.running
        if child is not self.child or unit is None or frame.number != unit.number:
            return
        self.works += 1
        self.running = None
        count, name = len(unit.part), self.owner.body.name
        if frame.kind == OUTGROWN and count > 1 and self.owner.again and not unit.left:
            log.warning(
                "%s ran out of memory with a batch of %d; its halves are run, and later ones kept smaller", self.title, count
            )
            self.owner.host.outgrown(unit.work, unit.part)
            trial = unit.trial or Trial(len(unit.work.requests))
            trial.halve()
            self.proceed(unit.work, trial)
        elif unit.trial is not None:
            unit.trial.answered(results_of(frame, count, name)[0])
            self.proceed(unit.work, unit.trial)
        else:
            if self.peak is not None:
                self.peak.report(unit, child)
            following = self._go_on()
            self.owner.host.finished(unit.work, *results_of(frame, count, name))
            if following is not None:
                self.owner.host.taken(following.work)
        if self.recycles:
            self.renewal.look()

    def _go_on(self) -> Unit | None:
        """Send what is staged, if anything is; the work before it has not been reported yet."""
        if self.recycles:
            self.renewal.swap()
        following, self.staged = self.staged, None
        if following is not None:
            self.send(following)
        return following

    def finish(self, work: Any, results: Any, measured: bool = True) -> None:
        """The work has ended, and nothing has been sent after it."""
        following = self._go_on() if self.child is not None else None
        self.owner.host.finished(work, results, measured=measured)
        if following is not None:
            self.owner.host.taken(following.work)

    def proceed(self, work: Any, trial: Trial) -> None:
        """Run the next part of a work, now or when a process is up; or report it, if that was the last."""
        if trial.left:
            trial.fail(asyncio.CancelledError())
        if trial.part() is None:
            self.finish(work, trial.results, measured=False)
        elif self.child is not None:
            self.send(self.prepare(work, trial))
        else:
            self.waiting = (work, trial)

    # Streams and cancels

    def items(self, child: Child, frame: Frame) -> None:
        """A stream went on."""
        unit = self.running
        if child is not self.child or unit is None or frame.number != unit.number:
            return
        try:
            items = frame.load()
        except Exception as error:  # of a class that cannot be read here; the stream cannot go on without it
            self.kill(ServiceError(f"{self.title} produced what cannot be read here: {error}"))
            return
        unit.sent += len(items)
        self.stalled = 0.0
        self.owner.host.produced(unit.work, items)

    def whose(self, number: int, index: int) -> Any:
        unit = self.running
        return None if unit is None or unit.number != number else unit.work.requests[unit.part.start + max(index, 0)]

    def resume(self, work: Any, count: int) -> None:
        """The reader took items."""
        if self.running is not None and self.running.work is work and self.child is not None:
            self.running.take(count, self.child)

    def cancel(self, work: Any) -> None:
        """Nobody waits for this work any more."""
        if self.waiting is not None and self.waiting[0] is work:
            _, trial = self.waiting
            self.waiting = None
            trial.fail(asyncio.CancelledError())
            self.finish(work, trial.results, measured=False)
        elif self.running is not None and self.running.work is work and self.child is not None:
            self.running.left = True
            if self.running.trial is not None:
                self.running.trial.left = True
            self.child.calls.cancel()
            self.child.cancel(self.running.number)
            limit = self.owner.options.kill_after
            if limit is not None:
                self.owner.loop.call_later(limit, self._overdue, self.running, limit)

    def _overdue(self, unit: Unit, limit: float) -> None:
        if self.running is unit:
            self.overdue(limit)

    # Deaths

    def expected(self) -> bool:
        return self.running is not None and not self.running.full()

    def charges(self) -> bool:
        unit = self.running
        return unit is None or unit.trial is None or not unit.trial.deaths

    def served(self) -> bool:
        return self.works > 0

    def other_died(self, child: Child) -> None:
        self.renewal.died(child)

    def settle(self) -> None:
        staged = self.unstage()
        if staged is not None:
            self.owner.host.returned(staged)

    def lose(self, error: PenstockError, again: bool) -> None:
        unit, self.running = self.running, None
        self.settle()
        if unit is None:
            return
        work, trial = unit.work, unit.trial
        if not again or unit.left or not self.owner.again:
            results = [error] * len(work.requests)
            if trial is not None:
                trial.fail(error)
                results = trial.results
            self.owner.host.finished(work, results, measured=False)
            return
        trial = trial or Trial(len(work.requests))
        trial.died(error)
        self.proceed(work, trial)

    def leave(self) -> Child | None:
        successor = self.renewal.take()
        if successor is not None:
            successor.kill()
        return super().leave()

    def spare(self) -> Child | None:
        return self.renewal.take()

    def given_up(self, error: GivenUp) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            work, trial = waiting
            trial.fail(error)
            self.finish(work, trial.results, measured=False)

    def up(self, child: Child) -> None:
        self.works = 0
        self.child = child
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            self.proceed(*waiting)
        super().up(child)
