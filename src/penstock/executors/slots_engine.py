"""The loop around a model's steps: commands in, a step, and what it has produced out."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter
from typing import Any

from penstock.core.policy.slots import Slots
from penstock.executors.base import Body
from penstock.executors.invoke import contain
from penstock.executors.stepper import Stepper

Command = tuple[str, int, Any, Any]
"""(join, leave, read, stop or break off; the slot; the work; its item, or how many items were read)"""

Told = tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]
"""(work and item, for each item; work and result, for each that has ended)"""


def make_stepper(name: str, slots: Slots, buffer: int) -> Stepper:
    """The bookkeeping that a declaration asks for."""
    return Stepper(
        name, budget=slots.budget, stretch=slots.stretch, buffer=buffer, stream=slots.stream, drop_slow=slots.slow == "drop"
    )


class Engine:
    """One model, its slots, and the loop around its steps."""

    def __init__(
        self, body: Body, loop: asyncio.AbstractEventLoop, slots: Slots, buffer: int, post: Callable[[Told], None], index: int
    ) -> None:
        self.body = body
        self.name = body.name
        self.loop = loop
        self.post = post
        self.index = index
        self.stepper = make_stepper(self.name, slots, buffer)
        self.ended: asyncio.Future[None] = loop.create_future()
        self.model: Any = None
        self.stopping = False

    def start(self) -> asyncio.Future[None]:
        """Begin to construct the model; the future says how that went."""
        raise NotImplementedError

    def tell(self, command: Command) -> None:
        """Before the next step."""
        raise NotImplementedError

    def heed(self, command: Command) -> Any:
        """Carry out a command; what `add` returned if it has to be awaited first."""
        kind, slot, work, given = command
        if kind == "join":
            try:
                units = self.model.add(slot, *given.args, **given.kwargs)
                if inspect.isawaitable(units):
                    return units
                self.stepper.join(slot, work, units)
            except BaseException as error:
                self.stepper.ends.append((work, contain(self.name, error)))
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

    def failed(self, plan: dict[int, int], error: BaseException) -> None:
        """A step raised, or returned what makes no sense."""
        self.stepper.fail(plan, contain(self.name, error))

    @property
    def done(self) -> bool:
        return self.stopping and not self.stepper.seats


class ThreadEngine(Engine):
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
            self._serve()
        self._settle(self.ended, None)

    def _settle(self, future: asyncio.Future[None], error: BaseException | None) -> None:
        def settle() -> None:
            if not future.done():
                future.set_result(None) if error is None else future.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the loop is closed
            pass

    def _serve(self) -> None:
        stepper, commands, model, post = self.stepper, self._commands, self.model, self.post
        while True:
            while not commands.empty() or (stepper.idle and not stepper.ends and not self.done):
                self.heed(commands.get())
            if not stepper.idle:
                plan = stepper.plan()
                began = perf_counter()
                try:
                    emissions = model.step(plan)
                    stepper.absorb(plan, emissions, perf_counter() - began)
                except BaseException as error:
                    self.failed(plan, error)
            drops = stepper.drops
            while drops:
                self._drop(drops.pop())
            if stepper.items or stepper.ends:
                post(stepper.take())
            if self.done and stepper.idle:
                return

    def _drop(self, slot: int) -> None:
        """What `drop` raises harms no request: its own has ended. It is printed as any thread's error is."""
        try:
            self.model.drop(slot)
        except BaseException as error:
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
                    stepper.join(command[1], command[2], await units)
                except BaseException as error:
                    stepper.ends.append((command[2], contain(self.name, error)))

    async def _step(self) -> None:
        plan = self.stepper.plan()
        began = perf_counter()
        try:
            emissions = await self.model.step(plan)
            self.stepper.absorb(plan, emissions, perf_counter() - began)
        except BaseException as error:
            self.failed(plan, error)
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
        if stepper.items or stepper.ends:
            self.post(stepper.take())
