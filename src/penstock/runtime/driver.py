"""The runtime: carries out the scheduler's commands on one event loop, and tells it what happened.

Everything runs on the loop's thread. The clock is `time.monotonic`, never the loop's own (uvloop's is a cached
millisecond), so a timer that fires early is simply armed again.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from types import TracebackType
from typing import Any, Self

from penstock.context import Budget, Frame, frame_var, tighten
from penstock.core.commands import Command, End, Retire, Revoke, Stage, Start, Stop
from penstock.core.policy.declared import number
from penstock.core.request import Work
from penstock.core.scheduler import Scheduler
from penstock.core.snapshot import StationSnapshot, snapshot
from penstock.errors import ConfigError, ShuttingDown
from penstock.executors.base import Executor
from penstock.runtime.app import App, listed
from penstock.runtime.binding import Binding
from penstock.runtime.call import BoundCall
from penstock.runtime.log import Log
from penstock.runtime.memory import Budgets
from penstock.runtime.place import station_options
from penstock.runtime.replicas import Replicas
from penstock.runtime.sizes import Profile, Sizes, sizes
from penstock.runtime.tasks import Tasks
from penstock.runtime.watch import Watch
from penstock.service import Service, register, unregister

_NO_KWARGS: dict[str, Any] = {}  # one for all calls without any; never changed
_TICK = 0.001  # seconds; timers are not armed closer than this
_HEX = [f"{n:02x}" for n in range(256)]


class Runtime:
    """Runs services: `async with Runtime(app):` on the current loop, `with Runtime(app):` on a thread of its own.

    Entering loads every replica; leaving drains: what is in flight has `grace` seconds to finish, then it is ended
    with ShuttingDown. `profile` pins sizes for a small ("edge") or a large ("cloud") machine. Services that are not
    listed load at their first call. With `inline` what would run in child processes runs in this one, for a debugger.
    """

    def __init__(
        self,
        *services: App | Service[..., Any],
        profile: Profile | None = None,
        grace: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        place: Callable[..., Executor | None] | None = None,
        random: Random | None = None,
        watch: bool = True,
        inline: bool = False,
    ) -> None:
        apps = [each for each in services if isinstance(each, App)]
        self.services = listed(services)
        profile = next((app.profile for app in apps if app.profile is not None), None) if profile is None else profile
        self.weights = next((app.tokens.weights for app in reversed(apps) if app.tokens is not None), None)  # of tenants
        number("Runtime(grace=...)", grace, "seconds", least=0)
        self.sizes: Sizes = sizes(profile)
        self.clock = clock
        self.grace = grace
        self.inline = inline
        self.place = place  # where bodies run instead of where they say, if it knows: for simulation
        self.scheduler = Scheduler(random or Random())  # noqa: S311 - jitter, not secrets
        self.bindings: dict[Service[..., Any], Binding] = {}
        self.armed = float("inf")
        self.restarts = 0
        self.started = False
        self.closing = False
        self.unwatched: Callable[[], None] | None = None  # to be called when something begins: the watch is asleep
        self.watch = Watch(self) if watch else None
        self.budgets = Budgets(self)
        self.replicas = Replicas(self)
        self.tasks = Tasks(self)
        self.loop: asyncio.AbstractEventLoop
        self.thread = 0  # of the loop
        self.log: Log
        self._timer: asyncio.TimerHandle | None = None
        self._ids = itertools.count(1)
        self._prefix = os.urandom(5).hex()
        self._block = (0, f"{self._prefix}0000")  # 256 ids share all but their last two digits
        self._inbox: deque[Callable[[], object]] = deque()
        self._posted = False
        self._idle: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    # Starting and stopping

    async def start(self) -> None:
        """Load every listed service; raises what a constructor raised. Then this is the loop's runtime."""
        if self.started:
            raise ConfigError("this Runtime has been started before; make a new one")
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise ConfigError(
                "a child process imports this program to find its service, and the import starts a Runtime: "
                'put what the program does under `if __name__ == "__main__":`'
            )
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.log = Log(self.loop)
        register(self)
        self.started = True
        try:
            await asyncio.gather(*(self.bind(service).start() for service in self.services.values()))
        except BaseException:
            await self.stop(0.0)
            raise
        if self.watch is not None:
            self.watch.start()

    async def stop(self, within: float | None = None) -> None:
        """Drain and stop: take nothing new, let what is in flight end for `within` seconds, then end it."""
        if self.closing:
            return
        self.closing = True
        self.replicas.stop()
        try:
            await self.drain(self.grace if within is None else within)
        finally:
            executors = [b.executor for b in self.bindings.values() if b.executor is not None]
            await asyncio.gather(*(executor.stop(0.5) for executor in executors), return_exceptions=True)
            if self._timer is not None:
                self._timer.cancel()
            if self.watch is not None:
                self.watch.stop()
            self.log.flush()
            self.budgets.stop()
            unregister(self)

    async def drain(self, within: float) -> None:
        """Refuse new calls; wait until all others have ended, or end them after `within` seconds."""
        self.apply(self.scheduler.drain(self.clock()))
        self.arm()
        if self.busy() and within > 0:
            self._idle = asyncio.Event()
            try:
                await asyncio.wait_for(self._idle.wait(), within)
            except TimeoutError:
                pass
            self._idle = None
        if self.busy():
            self.apply(self.scheduler.abort(self.clock()))
            await asyncio.sleep(0)

    def settle(self) -> None:
        """Something ended: tell who waits for the last to end."""
        if self._idle is not None and not self.busy():
            self._idle.set()

    def busy(self) -> bool:
        """Whether any accepted call has not ended, or any work has not stopped."""
        return any(s.waiting or s.running or s.staged for s in self.scheduler.stations.values())

    def busy_hint(self) -> bool:
        """The same from another thread, where it may be a moment old."""
        try:
            return self.busy()
        except RuntimeError:  # a dict changed while it was read
            return True

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hurry = kind is not None and issubclass(kind, asyncio.CancelledError | KeyboardInterrupt)
        await self.stop(0.0 if hurry else None)

    def __enter__(self) -> Self:
        from penstock.threads import run_in_thread

        self._thread = run_in_thread(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        within = 0.0 if kind is not None and issubclass(kind, KeyboardInterrupt) else None
        asyncio.run_coroutine_threadsafe(self.stop(within), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        assert self._thread is not None
        self._thread.join(5.0)

    # Calls

    def bind(self, service: Service[..., Any]) -> Binding:
        """This runtime's side of a service; made when it is first seen."""
        binding = self.bindings.get(service)
        if binding is None:
            if service.name in self.scheduler.stations:
                raise ConfigError(f"another service named {service.name!r} is active; give one of them another name")
            options, place = station_options(service, self, self.sizes)
            binding = self.bindings[service] = Binding(self, service, place, self.scheduler.add(options))
            if self.watch is not None:
                self.watch.know(service)
        return binding

    def call(
        self,
        service: Service[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        budget: Budget | None = None,
        *,
        size: int = 0,
        id: str = "",  # noqa: A002 - the request's id
    ) -> BoundCall:
        """A call of this service, lazy. With `budget` it is a root call of its own, as HTTP makes them."""
        binding = self.bindings.get(service)
        if binding is None or not binding.loaded or (binding.executor is None and not binding.direct):
            binding = self.bind(service)
            binding.start_soon()
        frame: Frame | None = None
        within = binding.within
        if budget is None:
            frame = frame_var.get()
            budget = tighten(frame, within, self.clock() if within is not None or frame is not None else 0.0)
        elif within is not None:
            budget = tighten(Frame(budget), within, self.clock())
        return binding.call(binding, args, kwargs or _NO_KWARGS, budget, frame, id, size)

    def submit(
        self, service: Service[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> concurrent.futures.Future[Any]:
        """A call from a plain thread."""
        if threading.get_ident() == self.thread:
            name = service.name
            raise ConfigError(f"{name}.submit() is for plain threads; on the event loop use `await {name}(...)`")
        return self.hand_over(self.call(service, args, kwargs))

    def hand_over(self, call: BoundCall) -> concurrent.futures.Future[Any]:
        """Let this call run on the runtime's loop; the future belongs to the caller's thread."""
        from penstock.threads import Answer, begin

        call.used = False
        future = Answer()
        if self.closing:
            raise ShuttingDown("the runtime is shutting down and takes no new calls")
        try:
            self.post(lambda: begin(call, future))
        except RuntimeError:  # the loop was closed just now
            raise ShuttingDown("the runtime has stopped and takes no new calls") from None
        return future

    async def scale(self, service: Service[..., Any], replicas: int) -> None:
        """Have this many replicas; returns when new ones are up. Retired ones finish what they run."""
        await self.replicas.scale(self.bind(service), replicas)

    async def roll(self, service: Service[..., Any]) -> None:
        """Replace every replica, one at a time, each new one up before an old one drains; returns when all are new."""
        await self.replicas.roll(self.bind(service))

    def post(self, action: Callable[[], object]) -> None:
        """Run `action` on the loop soon; many posts wake the loop once."""
        self._inbox.append(action)
        if not self._posted:
            self._posted = True
            self.loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._posted = False
        for _ in range(len(self._inbox)):
            self._inbox.popleft()()

    def next_id(self) -> str:
        """A request id that is unique among all runtimes."""
        n = next(self._ids)
        block, text = self._block
        if n >> 8 != block:
            text = f"{self._prefix}{n >> 8:04x}"
            self._block = (n >> 8, text)
        return text + _HEX[n & 255]

    # Commands and time

    def apply(self, commands: Sequence[Command]) -> None:
        """Carry out what the scheduler orders. Work is taken back last, when all its callers have heard of their ends."""
        back: list[Revoke] = []
        for command in commands:
            kind = type(command)
            if kind is Start:
                work: Any = command[0]
                binding: Binding = work.station.owner
                if binding.direct:
                    work.requests[0].item.go()
                else:
                    binding.run(work)
            elif isinstance(command, End):
                call: BoundCall = command.request.item
                call.binding.record(call, command.error)
                call.fail(command.error)
            elif isinstance(command, Revoke):
                back.append(command)
            elif isinstance(command, Retire):
                self.replicas.retired(*command)
            else:
                self._apply_rarer(command)
        for command in back:
            self._apply_rarer(command)

    def _apply_rarer(self, command: Command) -> None:
        work: Work = command.work  # type: ignore[union-attr]
        executor: Executor | None = work.station.owner.executor
        if executor is None:
            return  # a body on the loop: its call is cancelled instead
        if isinstance(command, Stage):
            executor.stage(work)
        elif isinstance(command, Stop):
            executor.cancel(work)
        elif work.staged and executor.revoke(work):
            self.apply(self.scheduler.revoked(work, self.clock()))

    def arm(self) -> None:
        """Wake when the scheduler wants to."""
        at = self.scheduler.wake_at
        if at >= self.armed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self.armed = at
        self._timer = self.loop.call_later(max(at - self.clock(), _TICK), self._tick)

    def _tick(self) -> None:
        self.armed = float("inf")
        self._timer = None
        now = self.clock()
        if now >= self.scheduler.wake_at:
            self.apply(self.scheduler.tick(now))
        if not self.closing or self.busy():
            self.arm()

    # Observing

    def snapshot(self) -> dict[str, StationSnapshot]:
        """Every service's queue, replicas and limits, now."""
        return {name: snapshot(station) for name, station in self.scheduler.stations.items()}

    def ready(self, name: str) -> bool:
        """Whether this service takes calls: at least one replica is up and the runtime is not draining."""
        station = self.scheduler.stations.get(name)
        if station is None or self.closing or station.draining:
            return False
        return station.direct or any(replica.up for replica in station.replicas)
