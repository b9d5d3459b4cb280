"""One replica of a process service: the slot that holds work, whichever process fills it at the moment.

What is staged waits here, encoded, so that only a write remains when the answer before it arrives; the next batch goes
out before that answer is read. A process that dies takes only what it was running with it (WorkerLost).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from penstock.errors import InvalidRequest, ServiceError, WorkerLost
from penstock.executors.child.wire import Encoded, Frame
from penstock.executors.process_child import Child, results_of

if TYPE_CHECKING:
    from penstock.executors.process import ProcessExecutor

STARTUP = 120.0  # seconds
PAUSES = (0.1, 0.3, 1.0, 2.0, 5.0)
FAILURES = 5
WITHIN = 60.0


class GivenUp(ServiceError):
    """A replica failed too often to be started again."""

    final = True


class Unit:
    """A work on its way to a child: encoded, and numbered."""

    __slots__ = ("encoded", "error", "number", "work")

    def __init__(self, work: Any, number: int, encoded: Encoded | None, error: BaseException | None) -> None:
        self.work = work
        self.number = number
        self.encoded = encoded
        self.error = error


class Replica:
    """A slot, its process, and the history of its failures."""

    def __init__(self, owner: ProcessExecutor, index: int) -> None:
        self.owner = owner
        self.index = index
        self.title = f"{owner.body.name}: replica {index}"
        self.child: Child | None = None
        self.running: Unit | None = None
        self.staged: Unit | None = None
        self.numbers = 0
        self.unacknowledged = 0
        self.failures: list[float] = []

    async def launch(self) -> None:
        """Start a process and wait until its body is loaded; raises what its constructor raised."""
        owner = self.owner
        child = Child(owner.loop, self, owner.launcher.launch(self.index), owner.body.name)
        owner.processes[child.pid] = child
        child.load(owner.launcher.declaration)
        try:
            await asyncio.wait_for(asyncio.shield(child.loaded), STARTUP)
        except TimeoutError:
            raise ServiceError(f"{owner.body.name}: a replica was not loaded within {STARTUP:g} s") from None
        else:
            self.child = child
        finally:
            if self.child is not child:
                child.loaded.cancel()
                child.kill()

    # Work

    def prepare(self, work: Any) -> Unit:
        """Encode this work's input; an input that cannot be sent is the caller's fault, and waits its turn to be told."""
        self.numbers += 1
        requests = work.requests
        if self.owner.body.batched:
            units: Any = [list(column) for column in zip(*[request.item.args for request in requests], strict=True)]
        else:
            units = [(request.item.args, dict(request.item.kwargs)) for request in requests]
        child = self.child
        if child is None:
            return Unit(work, self.numbers, None, WorkerLost(f"{self.title} has just died"))
        try:
            return Unit(work, self.numbers, child.encode(self.numbers, units), None)
        except Exception as error:
            name = self.owner.body.name
            return Unit(work, self.numbers, None, InvalidRequest(f"{name}: the input cannot be sent to its process: {error}"))

    def run(self, work: Any) -> None:
        """Begin this work; the replica is free."""
        self.send(self.prepare(work))

    def send(self, unit: Unit) -> None:
        self.running = unit
        self.unacknowledged = 0
        if unit.encoded is not None and self.child is not None:
            self.child.run(unit.encoded)
        else:
            self.owner.loop.call_soon(self._refuse, unit)

    def _refuse(self, unit: Unit) -> None:
        if self.running is unit:
            error = unit.error or WorkerLost(f"{self.title} has just died")
            self.end(unit, [error for _ in unit.work.requests])

    def stage(self, work: Any) -> None:
        """Keep this work ready for the child."""
        unit = self.staged = self.prepare(work)
        if self.running is None:
            self.owner.loop.call_soon(self._take, unit)

    def _take(self, unit: Unit) -> None:
        if self.staged is unit and self.running is None:
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
        following = self.staged
        if following is not None and following.encoded is not None:
            child.run(following.encoded)
            following.encoded = None
            self.staged = None
            self.running = following
            self.unacknowledged = 0
        results, _ = results_of(frame, len(unit.work.requests), self.owner.body.name)
        host = self.owner.host
        if self.running is unit:
            self.end(unit, results)
            return
        assert following is not None
        host.finished(unit.work, results)
        host.taken(following.work)

    def end(self, unit: Unit, results: Any) -> None:
        """The unit has ended, and nothing has been sent after it."""
        following, self.running, self.staged = self.staged, None, None
        if following is not None:
            self.send(following)
        self.owner.host.finished(unit.work, results)
        if following is not None:
            self.owner.host.taken(following.work)

    def items(self, child: Child, frame: Frame) -> None:
        unit = self.running
        if child is self.child and unit is not None and frame.number == unit.number:
            try:
                items = frame.load()
            except Exception:  # of a class that cannot be read here; the stream cannot go on without it
                child.kill()
                return
            self.owner.host.produced(unit.work, items)

    def cancel(self, work: Any) -> None:
        if self.running is not None and self.running.work is work and self.child is not None:
            self.child.cancel(self.running.number)

    def resume(self, work: Any, count: int) -> None:
        """The reader took items: let the child produce as many more, in groups."""
        unit, child = self.running, self.child
        if unit is None or unit.work is not work or child is None:
            return
        self.unacknowledged += count
        if self.unacknowledged >= max(1, self.owner.buffer // 2):
            child.credit(unit.number, self.unacknowledged)
            self.unacknowledged = 0

    # Death

    def died(self, child: Child, how: str) -> None:
        """The process has gone: say what is lost, and start another."""
        owner = self.owner
        owner.processes.pop(child.pid, None)
        if child is not self.child:
            return
        self.child = None
        if owner.stopping:
            self._lose(WorkerLost(f"{owner.body.name} was stopped"))
            return
        error = WorkerLost(f"{self.title} {how}")
        now = time.monotonic()
        self.failures = [*(at for at in self.failures if now - at < WITHIN), now]
        owner.host.replica_down(self.index, error)
        self._lose(error)
        owner.spawn(self.again())

    def _lose(self, error: WorkerLost) -> None:
        staged = self.unstage()
        if staged is not None:
            self.owner.host.returned(staged)
        unit, self.running = self.running, None
        if unit is not None:
            self.owner.host.finished(unit.work, [error for _ in unit.work.requests])

    async def again(self) -> None:
        """Start another process, with growing pauses, until it has failed too often."""
        owner = self.owner
        while not owner.stopping:
            if len(self.failures) > FAILURES:
                text = f"{self.title} failed {len(self.failures)} times in {WITHIN:g} s"
                owner.host.replica_down(self.index, GivenUp(text))
                return
            await asyncio.sleep(PAUSES[min(len(self.failures), len(PAUSES)) - 1])
            if owner.stopping:
                return
            try:
                await self.launch()
            except Exception as error:
                self.failures.append(time.monotonic())
                owner.host.replica_down(self.index, error)
                continue
            owner.host.replica_up(self.index)
            return
