"""Runs batches of async bodies on the event loop, one task a batch.

Unbatched async calls do not come here: they run in the task that awaits them. Cancelling a batch cancels its task;
it is reported when the task has really ended, so a body that refuses to be cancelled keeps its slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from penstock.errors import ConfigError
from penstock.executors.base import Body, Host
from penstock.executors.invoke import cancelled, columns, contain, spread


def _gone(*_: Any) -> Any:
    raise AssertionError("a replica that was put away has been given work")


class InlineExecutor:
    """`replicas` batches at once; each replica of a class has its own instance, constructed on the loop."""

    depth = 1

    def __init__(self, body: Body, host: Host, loop: asyncio.AbstractEventLoop, replicas: int) -> None:
        if not body.is_async or not body.batched:
            raise ConfigError(f"{body.name}: only batched async bodies run as tasks of their own on the loop")
        self.body = body
        self._host = host
        self._loop = loop
        self._replicas = replicas
        self._targets: list[Callable[..., Any]] = []
        self._tasks: dict[Any, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Construct every replica; raises what a constructor raised."""
        self._targets = [self.body.load() for _ in range(self._replicas)]
        for replica in range(self._replicas):
            self._host.replica_up(replica)

    async def grow(self, index: int) -> None:
        """Construct one more replica."""
        target = self.body.load()
        self._targets[index : index + 1] = [target]
        self._host.replica_up(index)

    async def shrink(self, index: int) -> None:
        """Let go of the instance; a later one may take its place."""
        if index < len(self._targets):
            self._targets[index] = _gone

    def run(self, work: Any) -> None:
        """Begin this batch in a task."""
        task = self._tasks[work] = self._loop.create_task(self._run(work))
        task.add_done_callback(lambda _: self._unbegun(work))

    def _unbegun(self, work: Any) -> None:
        """A task that is cancelled before its first step never runs, and so cannot report."""
        if self._tasks.pop(work, None) is not None:
            self._host.finished(work, cancelled(work.requests))

    async def _run(self, work: Any) -> None:
        name, requests = self.body.name, work.requests
        try:
            results = spread(name, await self._targets[work.replica](*columns(requests)), len(requests))
        except asyncio.CancelledError:
            results = cancelled(requests)
        except BaseException as error:
            results = [contain(name, error)] * len(requests)
        self._tasks.pop(work, None)
        self._host.finished(work, results)

    def stage(self, work: Any) -> None:
        """Not used: a batch on the loop starts as fast as it could be staged."""
        self._host.returned(work)

    def revoke(self, work: Any) -> bool:
        return False

    def cancel(self, work: Any) -> None:
        """Cancel the batch's task, once nobody waits for any of its items."""
        task = self._tasks.get(work)
        if task is not None:
            task.cancel()

    def resume(self, work: Any, count: int = 1) -> None:
        """Batches do not stream."""

    async def stop(self, within: float) -> None:
        """Let batches end for `within` seconds, then cancel them."""
        tasks = list(self._tasks.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=within)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)
