"""Runs models that advance in steps: each in a thread of its own, or as a task on the loop if its `step` is async.

To the core a slot is a replica that runs one request at a time; slot `k` of instance `i` is replica `i * size + k`.
Per step one message goes each way: what has come to the loop since the last one is told before the next one begins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from penstock.core.policy.slots import Slots
from penstock.executors.base import Body, Host
from penstock.executors.flow import Credit
from penstock.executors.ready import all_ready
from penstock.executors.slots_engine import Engine, TaskEngine, ThreadEngine, Told, stepper_options


class SlotsExecutor:
    """`instances` models of `slots.size` slots each; `buffer` bounds how far a model may be ahead of a reader."""

    depth = 0

    def __init__(
        self,
        body: Body,
        host: Host,
        loop: asyncio.AbstractEventLoop,
        slots: Slots,
        instances: int,
        *,
        buffer: int,
        tpot: float | None = None,
    ) -> None:
        self.body = body
        self.host = host
        self.loop = loop
        self.slots = slots
        self.buffer = buffer
        self.options = stepper_options(slots, buffer, tpot)
        self.engines: list[Engine] = [self._engine(index) for index in range(instances)]
        self._credits: dict[Any, Credit] = {}
        self._inbox: deque[Told] = deque()
        self._posted = False

    async def start(self) -> None:
        """Construct every model; raises what a constructor raised."""
        await all_ready([engine.start() for engine in self.engines], self.stop)
        for index in range(len(self.engines)):
            self._up(index)

    def _engine(self, index: int) -> Engine:
        kind = TaskEngine if self.body.is_async else ThreadEngine
        tell = self.report if self.body.is_async else self.post
        return kind(self.body, self.loop, self.options, tell, index)

    def _up(self, index: int) -> None:
        for slot in range(self.slots.size):
            self.host.replica_up(index * self.slots.size + slot)

    async def grow(self, index: int) -> None:
        """Construct one more model."""
        engine = self._engine(index)
        self.engines[index : index + 1] = [engine]
        await engine.start()
        self._up(index)

    async def shrink(self, index: int) -> None:
        """End this model's loop; its slots are empty."""
        engine = self.engines[index]
        engine.tell(("stop", 0, None, None))
        await asyncio.shield(engine.ended)

    def _at(self, work: Any) -> tuple[Engine, int]:
        engine, slot = divmod(work.replica, self.slots.size)
        return self.engines[engine], slot

    def run(self, work: Any) -> None:
        """Let this request in before the next step."""
        engine, slot = self._at(work)
        if self.slots.stream:
            self._credits[work] = Credit(self.buffer)
        engine.tell(("join", slot, work, work.requests[0].item))

    def cancel(self, work: Any) -> None:
        """Let it out before the next step."""
        engine, slot = self._at(work)
        engine.tell(("leave", slot, work, None))

    def resume(self, work: Any, count: int = 1) -> None:
        """The reader took items; told in groups, which is enough for a slot that had to pause."""
        credit = self._credits.get(work)
        if credit is not None and (owed := credit.take(count)):
            engine, slot = self._at(work)
            engine.tell(("read", slot, work, owed))

    def stage(self, work: Any) -> None:
        """Not used: a slot has nothing to be prepared for."""
        self.host.returned(work)

    def revoke(self, work: Any) -> bool:
        return False

    async def stop(self, within: float) -> None:
        """Let requests end for `within` seconds, then let the rest out between two steps."""
        for engine in self.engines:
            engine.tell(("stop", 0, None, None))
        if await self._ended(within):
            return
        for engine in self.engines:
            engine.tell(("break off", 0, None, None))
        if not await self._ended(0.1):
            for engine in self.engines:
                engine.cut()
            await self._ended(0.1)

    async def _ended(self, within: float) -> bool:
        running = [engine.ended for engine in self.engines if not engine.ended.done()]
        return not running or not (await asyncio.wait(running, timeout=max(within, 0.001)))[1]

    # What the engines tell

    def report(self, told: Told) -> None:
        """On the loop: what one step has produced, then who has ended."""
        items, ends = told
        if items:
            self.host.emitted(items)
        for work, result in ends:
            self._credits.pop(work, None)
            self.host.finished(work, [result])

    def post(self, told: Told) -> None:
        """From a thread: many steps wake the loop once."""
        self._inbox.append(told)
        if not self._posted:
            self._posted = True
            try:
                self.loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop is closed, and with it everybody who could want to know
                self._inbox.clear()

    def _drain(self) -> None:
        self._posted = False
        for _ in range(len(self._inbox)):
            self.report(self._inbox.popleft())
