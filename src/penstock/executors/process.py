"""Runs bodies in child processes, one for each replica.

A child runs one unit of work at a time and never queues: what is staged waits in this process, and is sent in the same
turn of the loop in which the previous answer arrives. The parts: `process_launch` starts a process, `process_child` is
one process and its end, `process_supervisor` what outlives it, with `process_life` (restarts); `process_replica` is one
that runs works, with `process_trial` (a batch run again in parts) and `process_renewal` (recycling), `process_slots` one
whose model advances in steps; `child/` is what runs there.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from penstock.executors.base import Body, Host, Process, fewest
from penstock.executors.process_child import Child
from penstock.executors.process_launch import Launcher
from penstock.executors.process_renewal import LINGER
from penstock.executors.process_replica import Replica
from penstock.executors.process_supervisor import Supervisor
from penstock.executors.ready import all_ready


class Processes(ABC):
    """Children with `threads` numeric threads each; `buffer` bounds how far a stream may run ahead."""

    replicas: list[Any]  # of one kind of Supervisor

    def __init__(
        self,
        body: Body,
        host: Host,
        loop: asyncio.AbstractEventLoop,
        options: Process,
        threads: int,
        *,
        buffer: int,
        progress_timeout: float,
        steps: dict[str, Any] | None = None,
    ) -> None:
        self.body = body
        self.host = host
        self.loop = loop
        self.options = options
        self.buffer = buffer
        self.stopping = False
        self._limit = progress_timeout
        self._tick = min(1.0, progress_timeout / 4)
        self._looked = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self.launcher = Launcher(body, options, threads, buffer, self._tick / 2, steps)
        self.processes: dict[int, Child] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def up(self, index: int) -> None:
        """This replica takes work."""
        self.host.replica_up(index)

    def down(self, index: int, error: BaseException) -> None:
        """This replica has died, or could not load."""
        self.host.replica_down(index, error)

    @abstractmethod
    def replica(self, index: int) -> Supervisor:
        """A new one, without a process."""

    async def grow(self, index: int) -> None:
        """Launch one more child."""
        replica = self.replica(index)
        self.replicas[index : index + 1] = [replica]
        await replica.launch()
        self.up(index)

    async def shrink(self, index: int) -> None:
        """Let this child end; it is killed if it takes too long."""
        child = self.replicas[index].leave()
        if child is not None:
            child.stop()
            await asyncio.wait([child.gone], timeout=LINGER)
            child.kill()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this beside everything else, until it ends or the executor stops."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def start(self) -> None:
        """Launch all children; raises what a constructor raised, with the child's traceback as a note."""
        await all_ready([replica.launch() for replica in self.replicas], self.stop)
        for replica in self.replicas:
            self.up(replica.index)
        self._looked = time.monotonic()
        self._watchdog = self.loop.call_later(self._tick, self._watch)

    def _watch(self) -> None:
        """Time in which this process itself stood still does not count against its children."""
        now = time.monotonic()
        elapsed, self._looked = min(now - self._looked, 2 * self._tick), now
        for replica in self.replicas:
            replica.watch(elapsed, self._limit)
        self._watchdog = self.loop.call_later(self._tick, self._watch)

    async def stop(self, within: float) -> None:
        """Ask the children to end; kill those that have not after `within` seconds."""
        self.stopping = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        for task in list(self._tasks):
            task.cancel()
        for replica in self.replicas:
            replica.settle()
        for child in list(self.processes.values()):
            child.stop()
        await self._gone(within)
        for child in list(self.processes.values()):
            child.kill()
        await self._gone(2.0)

    async def _gone(self, within: float) -> None:
        """Wait until every process has gone, at most so long."""
        until = time.monotonic() + within
        while self.processes and (left := until - time.monotonic()) > 0:
            await asyncio.wait([child.gone for child in self.processes.values()], timeout=left)


class ProcessExecutor(Processes):
    """Runs works: calls, batches and streams, one at a time in each child."""

    depth = 1

    def __init__(
        self,
        body: Body,
        host: Host,
        loop: asyncio.AbstractEventLoop,
        options: Process,
        threads: int,
        *,
        buffer: int = 64,
        progress_timeout: float = 60.0,
        safe: bool | None = None,
        measure: bool = False,
    ) -> None:
        super().__init__(body, host, loop, options, threads, buffer=buffer, progress_timeout=progress_timeout)
        self.again = not body.streams and (body.batched if safe is None else safe)  # may a work be run again?
        self.measure = measure  # the memory that each work takes
        self.replicas: list[Replica] = [self.replica(index) for index in range(fewest(options.replicas))]

    def replica(self, index: int) -> Replica:
        return Replica(self, index)

    def run(self, work: Any) -> None:
        """Send this work to its child, which is idle."""
        self.replicas[work.replica].run(work)

    def stage(self, work: Any) -> None:
        """Keep this batch ready for its child."""
        self.replicas[work.replica].stage(work)

    def revoke(self, work: Any) -> bool:
        """Take a staged batch back; it has not left this process."""
        replica = self.replicas[work.replica]
        if replica.staged is None or replica.staged.work is not work:
            return False
        replica.unstage()
        return True

    def cancel(self, work: Any) -> None:
        """End a stream or an async body; a plain function runs to its end."""
        self.replicas[work.replica].cancel(work)

    def resume(self, work: Any, count: int = 1) -> None:
        """The reader took items: let the child produce as many more, in groups."""
        self.replicas[work.replica].resume(work, count)
