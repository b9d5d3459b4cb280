"""Many calls of an async body at once: each is a task on this child's loop, and has a slot.

For bodies that batch by themselves or mostly wait. The main thread runs the loop, which hears of the parent's frames when they
arrive; what one turn of the loop has produced goes out in one message, as after a step of a model (`stepping.py`).
"""

from __future__ import annotations

import asyncio
import contextvars
import pickle
from typing import TYPE_CHECKING, Any

from .outcome import failure, unsendable
from .wire import ITEMS, RUN, STOP, TELL, Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .link import Link
    from .outcome import Failure

    End = tuple[int, Failure | None, Any]  # slot, what failed it, the answer where there is one

SLOT: contextvars.ContextVar[int] = contextvars.ContextVar("penstock_slot", default=-1)


class Seat:
    """One call in its slot."""

    __slots__ = ("room", "task", "verdict", "waiting")

    def __init__(self, room: int) -> None:
        self.room = room  # items that its reader would still let it be ahead
        self.task: asyncio.Task[Any] | None = None
        self.waiting: asyncio.Future[None] | None = None
        self.verdict: Failure | None = None  # why it fails, whatever it says itself


class Tasks:
    """The main thread's loop."""

    def __init__(
        self, link: Link, name: str, call: Callable[..., Any], options: dict[str, Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.link = link
        self.name = name
        self.call = call
        self.streams: bool = options["streams"]
        self.buffer: int = options["buffer"]
        self.loop = loop
        self.seats: dict[int, Seat] = {}
        self.items: list[tuple[int, Any]] = []
        self.ends: list[End] = []
        self.reporting = False
        self.over: asyncio.Future[None] = loop.create_future()
        self.stopping = False

    def drive(self) -> None:
        """Until told to stop, and nobody is left."""
        self.loop.add_reader(self.link.fileno(), self.listen)
        self.loop.call_soon(self.listen)  # frames that came with the last one
        self.loop.run_until_complete(self.over)

    # From the parent

    def listen(self) -> None:
        """Carry out what has arrived."""
        while (frame := self.link.receive(wait=False)) is not None:
            self.heed(frame)
        if self.link.ended:
            self.stopping = True
            self.loop.remove_reader(self.link.fileno())
        self._look()

    def heed(self, frame: Frame) -> None:
        if frame.kind == RUN:
            self.begin(frame)
        elif frame.kind == TELL:
            left, read = frame.load()
            for slot in left:
                self.leave(slot)
            for slot, count in read:
                self.acknowledge(slot, count)
        elif frame.kind == STOP:
            self.stopping = True

    def begin(self, frame: Frame) -> None:
        slot = frame.number
        try:
            args, kwargs, _ = frame.load()  # how early it has to start matters to steps alone
        except BaseException as error:  # a class that this interpreter does not have
            self.end(slot, failure(slot, error, f"{self.name}, reading its input,"), None)
            return
        seat = self.seats[slot] = Seat(self.buffer)
        context = contextvars.copy_context()
        context.run(SLOT.set, slot)
        run = self.stream(slot, seat, args, kwargs) if self.streams else self.whole(args, kwargs)
        seat.task = context.run(self.loop.create_task, self.contained(slot, seat, run))
        seat.task.add_done_callback(lambda task: self.done(slot, task))

    def leave(self, slot: int) -> None:
        """Nobody wants this call any more; its slot is free when it has really stopped."""
        seat = self.seats.get(slot)
        if seat is not None and seat.task is not None:
            seat.task.cancel()

    def acknowledge(self, slot: int, count: int) -> None:
        """The reader took items."""
        seat = self.seats.get(slot)
        if seat is not None:
            seat.room += count
            if seat.waiting is not None and not seat.waiting.done():
                seat.waiting.set_result(None)

    # A call

    async def contained(self, slot: int, seat: Seat, run: Coroutine[Any, Any, Any]) -> Any:
        """What it comes to. A task that exits would end the loop, and everybody else's calls with it."""
        try:
            return await run
        except (SystemExit, KeyboardInterrupt) as error:
            seat.verdict = failure(slot, error, self.name)
            return None

    async def whole(self, args: Any, kwargs: Any) -> Any:
        """Its answer."""
        return await self.call(*args, **kwargs)

    async def stream(self, slot: int, seat: Seat, args: Any, kwargs: Any) -> None:
        """Its items, no further ahead of their reader than the buffer."""
        items = self.call(*args, **kwargs)
        try:
            async for item in items:
                self.items.append((slot, item))
                self.report_soon()
                seat.room -= 1
                while seat.room <= 0:
                    seat.waiting = self.loop.create_future()
                    await seat.waiting
        finally:
            await items.aclose()

    def done(self, slot: int, task: asyncio.Task[Any]) -> None:
        """A call has stopped."""
        seat = self.seats.pop(slot)
        seat.task = None
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        failed = seat.verdict or (None if error is None else failure(slot, error, self.name))
        self.end(slot, failed, None if failed is not None else task.result())

    def end(self, slot: int, failed: Failure | None, result: Any) -> None:
        self.ends.append((slot, failed, result))
        self.report_soon()

    def _look(self) -> None:
        if self.stopping and not self.seats and not self.ends and not self.over.done():
            self.over.set_result(None)

    # To the parent

    def report_soon(self) -> None:
        if not self.reporting:
            self.reporting = True
            self.loop.call_soon(self.report)

    def report(self) -> None:
        """One message for what this turn of the loop has produced."""
        self.reporting = False
        items, ends = self.items, self.ends
        self.items, self.ends = [], []
        slots, values = [slot for slot, _ in items], [item for _, item in items]
        try:
            self.link.send(ITEMS, 0, (slots, values, ends))
        except Exception:
            self.report_apart(items, ends)
        self._look()

    def report_apart(self, items: list[tuple[int, Any]], ends: list[End]) -> None:
        """Something cannot be pickled: its call fails, the others go on."""
        failed: dict[int, Failure] = {}
        for slot, value in [*items, *((slot, result) for slot, _, result in ends)]:
            try:
                pickle.dumps(value)
            except Exception as error:
                failed.setdefault(slot, unsendable(slot, value, error, self.name))
        for slot, verdict in failed.items():
            if slot in self.seats:
                self.seats[slot].verdict = verdict
                self.leave(slot)
        items = [(slot, item) for slot, item in items if slot not in failed]
        ends = [(slot, failed.get(slot, wrong), None if slot in failed else result) for slot, wrong, result in ends]
        self.link.send(ITEMS, 0, ([slot for slot, _ in items], [item for _, item in items], ends))
