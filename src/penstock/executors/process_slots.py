"""Children that run many requests at once: models that advance in steps, and async bodies with `concurrency`.

Each child has its slots, and to the core each slot is a replica. What is to be said to a child in one turn of the loop leaves
in one message, and what one step (or one turn of the child's loop) produced arrives in one. A slot's number is all that names
a request on the way: both directions are in order, so neither side can mistake an old request for the next one in its slot.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from penstock.core.policy.slots import Slots
from penstock.errors import InvalidRequest, PenstockError, ServiceError, WorkerLost
from penstock.executors.base import Body, Host, Process, fewest
from penstock.executors.child.wire import Encoded, Frame
from penstock.executors.flow import Credit
from penstock.executors.process import Processes
from penstock.executors.process_child import Child, error_of
from penstock.executors.process_slots_renewal import SlotsRenewal
from penstock.executors.process_supervisor import Supervisor
from penstock.executors.slots_engine import stepper_options


class Seat:
    """A request in its slot, as this side sees it."""

    __slots__ = ("credit", "credited", "left", "replica", "slot", "work")

    def __init__(self, replica: SlotsReplica, slot: int, work: Any, buffer: int) -> None:
        self.replica = replica
        self.slot = slot
        self.work = work
        self.credit = Credit(buffer)
        self.credited = 0
        self.left = False  # nobody waits for it any more


class SlotsReplica(Supervisor):
    """A model and who is in its slots."""

    owner: ProcessSlotsExecutor

    def __init__(self, owner: ProcessSlotsExecutor, index: int) -> None:
        super().__init__(owner, index)
        self.seats: dict[int, Seat] = {}
        self.works: dict[int, Any] = {}
        self.sent: Counter[int] = Counter()  # items, by slot
        self.renewal = SlotsRenewal(self)
        self.told = 0  # messages with something in them, of this process
        self._joins: list[Encoded] = []
        self._left: dict[int, None] = {}
        self._read: dict[int, int] = {}
        self._posted = False

    # To the child

    def run(self, seat: Seat) -> None:
        """Let this request in before the next step."""
        slot, work = seat.slot, seat.work
        self.seats[slot] = seat
        self.works[slot] = work
        self.sent[slot] = 0
        item, child = work.requests[0].item, self.child
        error: PenstockError
        if child is None:
            error = WorkerLost(f"{self.title} has just died")
        else:
            try:
                self._joins.append(child.encode(slot, (item.args, dict(item.kwargs), work.early)))
                self._post()
                return
            except Exception as raised:
                error = InvalidRequest(f"{self.owner.body.name}: the input cannot be sent to its process: {raised}")
        self.owner.loop.call_soon(self._refuse, seat, error)

    def _refuse(self, seat: Seat, error: PenstockError) -> None:
        if self.seats.get(seat.slot) is seat:
            self._end(seat.slot, error)

    def cancel(self, seat: Seat) -> None:
        """Let it out before the next step."""
        seat.left = True
        self._left[seat.slot] = None
        self._post()
        limit = self.owner.options.kill_after
        if limit is not None:
            self.owner.loop.call_later(limit, self._overdue, seat, limit)

    def _overdue(self, seat: Seat, limit: float) -> None:
        if self.seats.get(seat.slot) is seat:
            self.overdue(limit)

    def read(self, seat: Seat, owed: int) -> None:
        """The reader took items."""
        seat.credited += owed
        self._read[seat.slot] = self._read.get(seat.slot, 0) + owed
        self._post()

    def _post(self) -> None:
        if not self._posted:
            self._posted = True
            self.owner.loop.call_soon(self.settle)

    def settle(self) -> None:
        """Send what has come together in this turn of the loop."""
        self._posted = False
        if self.child is not None and (self._joins or self._left or self._read):
            self.child.tell(self._joins, list(self._left), list(self._read.items()))
        self._forget()

    def _forget(self) -> None:
        self._joins = []
        self._left.clear()
        self._read.clear()

    # From the child

    def items(self, child: Child, frame: Frame) -> None:
        """A step was made."""
        if child is not self.child:
            return
        self.stalled = 0.0
        try:
            slots, items, ends = frame.load()
        except Exception as error:  # of a class that cannot be read here, and there is no telling whose
            self.kill(ServiceError(f"{self.title} produced what cannot be read here: {error}"))
            return
        self.told += bool(slots or ends)
        if slots:
            self.sent.update(slots)
            self.owner.host.emitted(list(zip(map(self.works.__getitem__, slots), items, strict=True)))
        for slot, failed, last in ends:
            self._end(slot, last if failed is None else error_of(failed))

    def _end(self, slot: int, result: Any, measured: bool = True) -> None:
        """What was to be told of this request must not reach the next one in its slot."""
        del self.seats[slot]
        self._left.pop(slot, None)
        self._read.pop(slot, None)
        work = self.works.pop(slot)
        del self.owner.seats[work]
        self.owner.host.finished(work, [result], measured=measured)
        if self.child is not None:
            self.renewal.look()

    def whose(self, number: int, index: int) -> Any:
        work = self.works.get(number)
        return None if work is None else work.requests[0]

    # Supervision

    def expected(self) -> bool:
        return any(seat.left or not self._full(slot, seat) for slot, seat in self.seats.items())

    def _full(self, slot: int, seat: Seat) -> bool:
        return self.sent[slot] - seat.credited >= self.owner.buffer

    def served(self) -> bool:
        return self.told > 0

    def spare(self) -> Child | None:
        return self.renewal.take()

    def other_died(self, child: Child) -> None:
        self.renewal.died(child)

    def leave(self) -> Child | None:
        successor = self.renewal.take()
        if successor is not None:
            successor.kill()
        return super().leave()

    def up(self, child: Child) -> None:
        self.told = 0
        self.renewal.renewed()
        super().up(child)

    def lose(self, error: PenstockError, again: bool) -> None:
        self._forget()
        for slot in list(self.seats):
            self._end(slot, error, measured=False)


class ProcessSlotsExecutor(Processes):
    """Slot `k` of child `i` is replica `i * size + k`."""

    depth = 0

    def __init__(
        self,
        body: Body,
        host: Host,
        loop: asyncio.AbstractEventLoop,
        slots: Slots | None,
        options: Process,
        threads: int,
        *,
        buffer: int,
        progress_timeout: float,
        tpot: float | None = None,
    ) -> None:
        steps = None if slots is None else stepper_options(slots, buffer, tpot)
        super().__init__(body, host, loop, options, threads, buffer=buffer, progress_timeout=progress_timeout, steps=steps)
        self.size = options.concurrency if slots is None else slots.size
        self.seats: dict[Any, Seat] = {}  # by work
        self.replicas: list[SlotsReplica] = [self.replica(index) for index in range(fewest(options.replicas))]

    def replica(self, index: int) -> SlotsReplica:
        return SlotsReplica(self, index)

    def _slots(self, index: int) -> range:
        return range(index * self.size, (index + 1) * self.size)

    def up(self, index: int) -> None:
        for slot in self._slots(index):
            self.host.replica_up(slot)

    def down(self, index: int, error: BaseException) -> None:
        first, *others = self._slots(index)
        self.host.replica_down(first, error, others)

    def run(self, work: Any) -> None:
        """Let this request in before the next step."""
        index, slot = divmod(work.replica, self.size)
        replica = self.replicas[index]
        seat = self.seats[work] = Seat(replica, slot, work, self.buffer)
        replica.run(seat)

    def cancel(self, work: Any) -> None:
        """Let it out before the next step."""
        seat = self.seats.get(work)
        if seat is not None:
            seat.replica.cancel(seat)

    def resume(self, work: Any, count: int = 1) -> None:
        """The reader took items; told in groups, which is enough for a slot that had to pause."""
        seat = self.seats.get(work)
        if seat is not None and (owed := seat.credit.take(count)):
            seat.replica.read(seat, owed)

    def stage(self, work: Any) -> None:
        """Not used: a slot has nothing to be prepared for."""
        self.host.returned(work)

    def revoke(self, work: Any) -> bool:
        return False
