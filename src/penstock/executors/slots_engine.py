"""The loop around a model's steps: commands in, a step, and what it has produced out."""

from __future__ import annotations

import asyncio
import inspect
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from penstock.core.policy.slots import Slots
from penstock.executors.base import Body
from penstock.executors.child.outcome import Verdict
from penstock.executors.child.stepper import Stepper
from penstock.executors.child.steps import Steps
from penstock.executors.invoke import contain, own_error

Command = tuple[str, int, Any, Any]
"""(join, leave, read, stop or break off; the slot; the work; its item, or how many items were read)"""

Told = tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]
"""(work and item, for each item; work and result, for each that has ended)"""


def stepper_options(slots: Slots, buffer: int, tpot: float | None = None) -> dict[str, Any]:
    """The bookkeeping that a declaration asks for; `tpot` is how long an item may take on average."""
    drop_slow = slots.slow == "drop"
    return {
        "longest": tpot,
        "budget": slots.budget,
        "stretch": slots.stretch,
        "buffer": buffer,
        "stream": slots.stream,
        "drop_slow": drop_slow,
    }


class Engine(ABC):
    """One model, its slots, and the loop around its steps."""

    def __init__(
        self,
        body: Body,
        loop: asyncio.AbstractEventLoop,
        options: dict[str, Any],
        post: Callable[[Told], None],
        index: int,
    ) -> None:
        self.body = body
        self.name = body.name
        self.loop = loop
        self.post = post
        self.index = index
        self.stepper = Stepper(self.name, **options)
        self.ended: asyncio.Future[None] = loop.create_future()
        self.model: Any = None
        self.stopping = False

    @abstractmethod
    def start(self) -> asyncio.Future[None]:
        """Begin to construct the model; the future says how that went."""

    @abstractmethod
    def tell(self, command: Command) -> None:
        """Before the next step."""

    def cut(self) -> None:
        """End in the middle of a step, where that can be done."""

    def heed(self, command: Command) -> Any:
        """Carry out a command; what `add` returned if it has to be awaited first."""
        kind, slot, work, given = command
        if kind == "join":
            try:
                units = self.model.add(slot, *given.args, **given.kwargs)
                if self.body.is_async and inspect.isawaitable(units):
                    return units
                self.stepper.join(slot, work, units, work.early)
            except BaseException as error:
                self.stepper.ends.append((work, self.contain(error)))
        elif kind == "leave":
            self.stepper.leave(slot, work)
        elif kind == "read":
            self.stepper.acknowledge(slot, work, given)
        elif kind == "stop":
            self.stopping = True
        else:
            for slot, seat in list(self.stepper.seats.items()):
                self.stepper.leave(slot, seat.key)
        return None

    def contain(self, error: BaseException) -> BaseException:
        """What is reported for what the model raised."""
        return contain(self.name, error)

    def report(self) -> None:
        """Report what the step has left."""
        stepper = self.stepper
        if stepper.items or stepper.ends:
            items, ends = stepper.take()
            self.post((items, [(work, own_error(r.kind, str(r)) if isinstance(r, Verdict) else r) for work, r in ends]))

    @property
    def done(self) -> bool:
        return self.stopping and not self.stepper.seats


class ThreadEngine(Engine, Steps):
    """Steps in a daemon thread."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._commands: SimpleQueue[Command] = SimpleQueue()

    def start(self) -> asyncio.Future[None]:
        loaded: asyncio.Future[None] = self.loop.create_future()
        name = f"penstock-{self.name}-{self.index}"
        threading.Thread(target=self._main, args=(loaded,), name=name, daemon=True).start()
        return loaded

    def tell(self, command: Command) -> None:
        self._commands.put(command)

    def _main(self, loaded: asyncio.Future[None]) -> None:
        error: BaseException | None = None
        try:
            self.model = self.body.load()
        except BaseException as raised:
            error = contain(self.name, raised)
        self._settle(loaded, error)
        if error is None:
            self.drive()
        self._settle(self.ended, None)

    def _settle(self, future: asyncio.Future[None], error: BaseException | None) -> None:
        def settle() -> None:
            if not future.done():
                future.set_result(None) if error is None else future.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop is closed
            pass

    def listen(self) -> None:
        commands = self._commands
        while not commands.empty() or self.waits:
            self.heed(commands.get())

    def spoilt(self, error: BaseException) -> None:
        """Printed as any thread's error is."""
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))


class TaskEngine(Engine):
    """Steps in a task on the loop; `add` and `drop` may be async too."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._commands: deque[Command] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Future[None]:
        loaded: asyncio.Future[None] = self.loop.create_future()
        try:
            self.model = self.body.load()
        except Exception as error:
            self.ended.set_result(None)
            loaded.set_exception(error)
        else:
            self._task = self.loop.create_task(self._serve())
            loaded.set_result(None)
        return loaded

    def tell(self, command: Command) -> None:
        self._commands.append(command)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _serve(self) -> None:
        try:
            while not self.done:
                await self._listen()
                if not self.stepper.idle:
                    await self._step()
                await self._tell_all()
        finally:
            self._close()

    def cut(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _close(self) -> None:
        """Whoever is left, if this was cut off, has ended too."""
        for slot, seat in list(self.stepper.seats.items()):
            self.stepper.leave(slot, seat.key)
        self.stepper.ends += [(work, asyncio.CancelledError()) for kind, _, work, _ in self._commands if kind == "join"]
        self.report()
        self.ended.set_result(None)

    async def _listen(self) -> None:
        """Carry out what has been told; wait for it if there is nothing else to do."""
        stepper, commands = self.stepper, self._commands
        while commands or (stepper.idle and not stepper.ends and not self.done):
            if not commands:
                self._waiting = self.loop.create_future()
                await self._waiting
                continue
            command = commands.popleft()
            units = self.heed(command)
            if units is not None:
                try:
                    stepper.join(command[1], command[2], await units, command[2].early)
                except BaseException as error:
                    stepper.ends.append((command[2], self.contain(error)))

    async def _step(self) -> None:
        plan, clock = self.stepper.plan(), self.loop.time
        began = clock()
        try:
            emissions = await self.model.step(plan)
            self.stepper.absorb(plan, emissions, clock() - began)
        except BaseException as error:
            self.stepper.fail(plan, self.contain(error))
            if self._task is not None and self._task.cancelling():
                raise
        await asyncio.sleep(0)  # a step that does not wait lets others run all the same

    async def _tell_all(self) -> None:
        stepper = self.stepper
        while stepper.drops:
            slot = stepper.drops.pop()
            try:
                waits_for = self.model.drop(slot)
                if inspect.isawaitable(waits_for):
                    await waits_for
            except Exception as error:
                context = {"message": f"{self.name}: drop() raised", "exception": error}
                self.loop.call_exception_handler(context)
        self.report()
