"""Continuous batching in a child: commands come in and a message goes out between two steps of its model."""

from __future__ import annotations

import inspect
import pickle
import sys
import traceback
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .end import END
from .outcome import Failure, Verdict, failure, unsendable
from .stepper import Stepper
from .steps import Steps
from .wire import ITEMS, RUN, STOP, TELL, Frame

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from .link import Link

    End = tuple[int, Failure | None, Any]  # slot, what failed it, the last item where only that is asked for


class Stepping(Steps):
    """The main thread's loop. To it, the key of a request is its slot: each side hears of an end before the slot's next
    request does, because what is sent stays in order.
    """

    def __init__(
        self,
        link: Link,
        name: str,
        model: Any,
        options: dict[str, Any],
        loop: asyncio.AbstractEventLoop | None,
        attend: Callable[[int, int], None],
    ) -> None:
        self.link = link
        self.name = name
        self.model = model
        self.options = options
        self.loop = loop
        self.attend = attend
        self.stepper = Stepper(name, **options)
        self.stopping = False
        self.due = 0.0  # when the parent wants to hear that steps are made, though there is nothing to tell
        attend(-1, -1)

    def warm_up(self, example: tuple[Any, ...]) -> None:
        """One request up to its first item; what it raises is what loading raises."""
        stepper, model = self.stepper, self.model
        stepper.join(0, 0, self.wait(model.add(0, *example)))
        while not stepper.items and not stepper.ends and stepper.seats[0].last is END:
            plan = stepper.plan()
            stepper.absorb(plan, self.wait(model.step(plan)), 0.0)
        self.wait(model.drop(0))
        if not stepper.items and stepper.ends and isinstance(stepper.ends[0][1], BaseException):
            raise stepper.ends[0][1]

    # The loop

    @property
    def done(self) -> bool:
        return self.link.ended or (self.stopping and not self.stepper.seats)

    def listen(self) -> None:
        while (frame := self.link.receive(wait=self.waits)) is not None:
            self.heed(frame)

    def heed(self, frame: Frame) -> None:
        stepper = self.stepper
        if frame.kind == RUN:
            self.join(frame)
        elif frame.kind == TELL:
            left, read = frame.load()
            for slot in left:
                stepper.leave(slot, slot)
            for slot, count in read:
                stepper.acknowledge(slot, slot, count)
        elif frame.kind == STOP:
            self.stopping = True

    def join(self, frame: Frame) -> None:
        slot, stepper = frame.number, self.stepper
        try:
            args, kwargs, early = frame.load()
        except BaseException as error:  # a class that this interpreter does not have
            _, kind, text, _ = failure(slot, error, f"{self.name}, reading its input,")
            stepper.ends.append((slot, Verdict(kind, text)))
            return
        self.attend(slot, 0)
        try:
            stepper.join(slot, slot, self.wait(self.model.add(slot, *args, **kwargs)), early)
        except BaseException as error:
            stepper.ends.append((slot, error))
        self.attend(-1, -1)

    def wait(self, value: Any) -> Any:
        if self.loop is not None and inspect.isawaitable(value):
            return self.loop.run_until_complete(value)
        return value

    def contain(self, error: BaseException) -> BaseException:
        return error

    def spoilt(self, error: BaseException) -> None:
        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)

    # What the parent hears

    def report(self) -> None:
        """One message, and at times one with nothing in it."""
        stepper, now = self.stepper, perf_counter()
        if not stepper.items and not stepper.ends and now < self.due:
            return
        self.due = now + self.link.beat
        items, ends = stepper.take()
        told = [self.end(slot, result) for slot, result in ends]
        slots, values = [slot for slot, _ in items], [item for _, item in items]
        try:
            self.link.send(ITEMS, 0, (slots, values, told))
        except Exception:
            self.report_apart(items, told)

    def end(self, slot: int, result: Any) -> End:
        return (slot, failure(slot, result, self.name), None) if isinstance(result, BaseException) else (slot, None, result)

    def report_apart(self, items: list[tuple[int, Any]], ends: list[End]) -> None:
        """Something cannot be pickled: its request fails, the others go on."""
        stepper = self.stepper
        failed: dict[int, Failure] = {}
        sendable: list[tuple[int, Any]] = []
        for slot, item in items:
            if slot not in failed and self.sendable(slot, item, failed):
                sendable.append((slot, item))
        for slot, _, last in ends:
            self.sendable(slot, last, failed)
        for slot, (_, kind, text, _) in failed.items():
            stepper.fail([slot], Verdict(kind, text))
        self.let_out()
        ends = [(slot, failed[slot], None) if slot in failed else (slot, wrong, last) for slot, wrong, last in ends]
        ends += [self.end(slot, result) for slot, result in stepper.take()[1]]
        self.link.send(ITEMS, 0, ([slot for slot, _ in sendable], [item for _, item in sendable], ends))

    def sendable(self, slot: int, item: Any, failed: dict[int, Failure]) -> bool:
        try:
            pickle.dumps(item)
        except Exception as error:
            failed.setdefault(slot, unsendable(slot, item, error, self.name))
            return False
        return True
