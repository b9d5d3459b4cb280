"""Replicas that come and go while a service runs: by hand, by rule, and one after the other to renew them all.

The core decides who takes work; an executor only loads (`grow`) and puts away (`shrink`) what the core names. New replicas
take work once they are up; a retired one finishes what it runs first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.core.policy.declared import whole
from penstock.core.replica import Replica
from penstock.core.station import Station
from penstock.errors import ConfigError, ShuttingDown
from penstock.executors.base import Scalable

if TYPE_CHECKING:
    from penstock.runtime.binding import Binding
    from penstock.runtime.driver import Runtime

_EVERY = 0.25  # seconds between two looks at the queues of services that scale by themselves

logger = logging.getLogger("penstock")


@dataclass(frozen=True, slots=True)
class ReplicasState:
    """How many replicas there are to be, how many take work now, the `change` under way, and how the last one failed."""

    wanted: int
    ready: int
    scalable: bool
    change: str
    change_failed: str


class Replicas:
    """Adds and retires the replicas of one runtime's services. One change of a service at a time."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._locks: dict[Binding, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changes: dict[Binding, str] = {}
        self._failures: dict[Binding, str] = {}
        self._spare: set[Binding] = set()  # of these a roll has a new replica beside the old one
        self._growing: set[Binding] = set()
        self._away: dict[tuple[Station, int], asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def state(self, binding: Binding) -> ReplicasState:
        """What is so now. Slots of one model are one replica here."""
        station, size = binding.station, binding.station.slots
        return ReplicasState(
            wanted=station.servers // size - (binding in self._spare),
            ready=sum(replica.up for replica in station.replicas) // size,
            scalable=issubclass(type(binding.executor), Scalable),
            change=self._changes.get(binding, ""),
            change_failed=self._failures.get(binding, ""),
        )

    async def scale(self, binding: Binding, count: int) -> None:
        """Have `count` replicas: returns when those that are new are up, while retired ones finish what they run."""
        executor, station = self.scalable(binding, count), binding.station
        async with self._lock(binding):
            with self._change(binding, f"scaling to {count}"):
                missing = count - station.servers // station.slots
                grown = (self._grow(binding, executor) for _ in range(missing))
                for result in await asyncio.gather(*grown, return_exceptions=True):
                    if isinstance(result, BaseException):
                        raise result
                for index in _expendable(station)[: max(0, -missing)]:
                    self._retire(binding, index)

    async def roll(self, binding: Binding) -> None:
        """Replace every replica: each new one is up before an old one drains, and that is gone before the next comes.

        If a new one does not load, this raises why; the old ones that are left serve on.
        """
        executor, station = self.scalable(binding), binding.station
        async with self._lock(binding):
            old = [host[0].index for host in _hosts(station)]
            for done, index in enumerate(old):
                with self._change(binding, f"rolling, {done} of {len(old)} replaced"):
                    self._spare.add(binding)
                    try:
                        await self._grow(binding, executor)
                        self._retire(binding, index)
                    finally:
                        self._spare.discard(binding)
                    away = self._away.get((station, index))
                    if away is not None:
                        await asyncio.shield(away)

    def detached(self, change: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Carry out a change whether or not whoever asked for it waits for its end."""
        return self._spawn(change)

    @contextlib.contextmanager
    def _change(self, binding: Binding, what: str) -> Iterator[None]:
        self._failures.pop(binding, None)
        self._changes[binding] = what
        try:
            yield
        except Exception as error:
            self._failures[binding] = f"{what}: {type(error).__name__}: {error}"
            raise
        finally:
            del self._changes[binding]

    def scalable(self, binding: Binding, count: int | None = None) -> Scalable:
        """The executor, if this service can have that many replicas while it runs; else ConfigError says why not."""
        executor, scaling = binding.executor, binding.station.scaling
        if not isinstance(executor, Scalable):
            what = "runs on the loop" if binding.direct else "has not been started, or runs where replicas cannot be added"
            raise ConfigError(f"{binding.name} {what}: it has no replicas to scale")
        if count is None:
            return executor
        whole(f"scale({binding.name}, ...)", count)
        if scaling is not None and not scaling.policy.minimum <= count <= scaling.policy.maximum:
            least, most = scaling.policy.minimum, scaling.policy.maximum
            raise ConfigError(f"{binding.name} scales by itself between {least} and {most} replicas; {count} is outside")
        return executor

    def _lock(self, binding: Binding) -> asyncio.Lock:
        return self._locks.setdefault(binding, asyncio.Lock())

    async def _grow(self, binding: Binding, executor: Scalable) -> None:
        if self.runtime.closing:
            raise ShuttingDown(f"{binding.name} gets no more replicas: the runtime is shutting down")
        index = self.runtime.scheduler.add_replica(binding.station)
        try:
            await executor.grow(index // binding.station.slots)
        except BaseException:
            self._retire(binding, index)
            raise

    def _retire(self, binding: Binding, index: int) -> None:
        runtime, station = self.runtime, binding.station
        self._away[station, index] = runtime.loop.create_future()
        runtime.apply(runtime.scheduler.retire(station, index, runtime.clock()))
        runtime.arm()

    def retired(self, station: Station, index: int) -> None:
        """The core ordered: this replica runs nothing any more."""
        if self.runtime.closing:
            self._gone(station, index)  # its executor is about to stop all of them
        else:
            self._spawn(self._put_away(station, index))

    async def _put_away(self, station: Station, index: int) -> None:
        executor = station.owner.executor
        try:
            if isinstance(executor, Scalable):
                await executor.shrink(index // station.slots)
        finally:
            self._gone(station, index)

    def _gone(self, station: Station, index: int) -> None:
        self.runtime.scheduler.replica_gone(station, index)
        away = self._away.pop((station, index), None)
        if away is not None and not away.done():
            away.set_result(None)

    # By rule

    def start(self) -> None:
        """Begin to look at the services that scale by themselves, if there are any."""
        if self._timer is None and any(b.station.scaling is not None for b in self.runtime.bindings.values()):
            self._timer = self.runtime.loop.call_later(_EVERY, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _look(self) -> None:
        self._timer = None
        now = self.runtime.clock()
        for binding in self.runtime.bindings.values():
            station = binding.station
            if station.scaling is None or station.draining or binding.executor is None or self._lock(binding).locked():
                continue
            count = station.wanted(now)
            if count != station.servers // station.slots:
                self._spawn(self._follow(binding, count))
        self.start()

    def more(self, binding: Binding) -> None:
        """A call waits for a replica, of which there may be as many as calls: soon there are."""
        if binding.executor is not None and not self._lock(binding).locked() and binding not in self._growing:
            self._growing.add(binding)
            self._spawn(self._grow_at_once(binding))

    async def _grow_at_once(self, binding: Binding) -> None:
        try:
            while (count := binding.station.wanted(self.runtime.clock())) > binding.station.servers:
                if not await self._follow(binding, count):
                    break
        finally:
            self._growing.discard(binding)

    async def _follow(self, binding: Binding, count: int) -> bool:
        try:
            await self.scale(binding, count)
        except Exception as error:
            logger.warning("%s could not be scaled to %d replicas: %r", binding.name, count, error)
            return False
        return True

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.runtime.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _hosts(station: Station) -> list[list[Replica]]:
    """The replicas that stay, by what comes and goes together."""
    hosts = [station.host(first) for first in range(0, len(station.replicas), station.slots)]
    return [host for host in hosts if not host[0].leaving]


def _expendable(station: Station) -> list[int]:
    """Those that can be spared first: what is down, then what is idle (the one used last goes last), then the newest."""
    idle = {index: place for place, index in enumerate(station.free)}

    def use(host: list[Replica]) -> tuple[object, ...]:
        running, staged = sum(r.work is not None for r in host), sum(r.staged is not None for r in host)
        return any(r.up for r in host), running, staged, max(idle.get(r.index, 0) for r in host), -host[0].index

    return [host[0].index for host in sorted(_hosts(station), key=use)]
