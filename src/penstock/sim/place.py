"""A simulated executor: bodies take random time, replicas crash and come back, staged work races with its revocation.

It keeps the contract of `executors.base`: reports on the loop's thread, one `finished` for each work that ran, and of
a staged work either `taken` (after the `finished` before it) or `returned`. Like a real worker it takes staged work the
moment it is done, a little before the loop hears of it; in between a revocation comes too late.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

from penstock.errors import WorkerLost
from penstock.executors.base import Body, Executor, Host
from penstock.executors.invoke import call_batch, call_each, cancelled, contain
from penstock.sim.models import Bad

TIMES = (0.0005, 0.002, 0.01, 0.05, 0.3)
STUCK = 6.0


class Places:
    """Gives each service of one runtime its executor: `Runtime(place=Places(random))`."""

    def __init__(self, random: Random, window: int = 4) -> None:
        self.random = random
        self.window = window
        self.made: list[SimulatedExecutor] = []
        self.seen: Counter[str] = Counter()

    def __call__(self, body: Body, host: Host, loop: asyncio.AbstractEventLoop, replicas: int) -> Executor | None:
        if body.is_async:
            return None  # what runs on the loop runs in virtual time as it is
        executor = SimulatedExecutor(body, host, loop, replicas, self)
        self.made.append(executor)
        return executor


class _Slot:
    """One replica. `reports` is set between a body's end and the loop's hearing of it."""

    __slots__ = ("acknowledged", "blocked", "items", "loaded", "reports", "sent", "staged", "stopping", "target", "up", "work")

    def __init__(self) -> None:
        self.target: Any = None
        self.up = False
        self.loaded = False  # and not put away since
        self.work: Any = None
        self.staged: Any = None
        self.items: Iterator[Any] | None = None
        self.sent = self.acknowledged = 0
        self.blocked = self.stopping = self.reports = False


class SimulatedExecutor:
    """`replicas` slots. Bodies run for real, at the end of the time that they are made to take."""

    depth = 1

    def __init__(self, body: Body, host: Host, loop: asyncio.AbstractEventLoop, replicas: int, places: Places) -> None:
        self.body = body
        self.host = host
        self.loop = loop
        self.random = places.random
        self.window = places.window
        self.seen = places.seen
        self.slots = [_Slot() for _ in range(replicas)]
        self.stopped = False

    async def start(self) -> None:
        for index, slot in enumerate(self.slots):
            slot.target = self.body.load()
            slot.up = slot.loaded = True
            self.host.replica_up(index)

    async def grow(self, index: int) -> None:
        slot = _Slot()
        self.slots[index : index + 1] = [slot]
        await asyncio.sleep(self.random.choice((0.0, 0.01, 0.2)))
        if self.random.random() < 0.1:
            self.seen["not grown"] += 1
            raise Bad("it does not load")
        slot.target = self.body.load()
        slot.up = slot.loaded = True
        self.seen["grown"] += 1
        self.host.replica_up(index)

    async def shrink(self, index: int) -> None:
        slot = self.slots[index]
        assert slot.work is None and slot.staged is None, f"{self.body.name}[{index}] is put away while it works"
        await asyncio.sleep(self.random.choice((0.0, 0.01)))
        slot.up = slot.loaded = False
        self.seen["shrunk"] += 1

    def run(self, work: Any) -> None:
        slot = self.slots[work.replica]
        assert slot.up and slot.work is None and slot.staged is None, f"{work!r}: its replica is not free"
        self._begin(slot, work)

    def _begin(self, slot: _Slot, work: Any) -> None:
        assert slot.work is None and not self.stopped
        slot.work = work
        slot.stopping = slot.blocked = slot.reports = False
        if self.body.streams:
            item = work.requests[0].item
            slot.sent = slot.acknowledged = 0
            slot.items = iter(item.context.run(slot.target, *item.args, **item.kwargs))
            self._later(slot, work, self._step)
        else:
            self._later(slot, work, self._done)

    def _later(self, slot: _Slot, work: Any, action: Any) -> None:
        seconds = self.random.choice(TIMES) if self.random.random() > 0.01 else STUCK
        if seconds == STUCK:
            self.seen["stuck"] += 1
        self.loop.call_later(seconds, self._due, slot, work, action)

    def _due(self, slot: _Slot, work: Any, action: Any) -> None:
        if slot.work is work and not slot.reports:  # else it was stopped or lost meanwhile
            action(slot, work)

    def _done(self, slot: _Slot, work: Any) -> None:
        name, requests = self.body.name, work.requests
        call = call_batch if self.body.batched else call_each
        self._ended(slot, work, call(name, slot.target, requests))

    def _step(self, slot: _Slot, work: Any) -> None:
        """One item of a stream, if its reader leaves room."""
        if slot.stopping:
            self._ended(slot, work, cancelled(work.requests))
            return
        if slot.sent - slot.acknowledged >= self.window:
            slot.blocked = True
            self.seen["window full"] += 1
            return
        assert slot.items is not None
        try:
            item = next(slot.items)
        except StopIteration:
            self._ended(slot, work, [None])
        except Exception as error:
            self._ended(slot, work, [contain(self.body.name, error)])
        else:
            slot.sent += 1
            self.host.produced(work, [item])
            self._later(slot, work, self._step)

    def _ended(self, slot: _Slot, work: Any, results: list[Any]) -> None:
        """The body is over. Its worker takes what is staged now; the loop hears of both now or a little later."""
        slot.reports = True
        taken, slot.staged = slot.staged, None
        if self.random.random() < 0.5:
            self._report(slot, work, results, taken)
        else:
            self.loop.call_later(self.random.choice((0.0, 0.001, 0.02)), self._report, slot, work, results, taken)

    def _report(self, slot: _Slot, work: Any, results: list[Any], taken: Any) -> None:
        if slot.work is not work:
            if taken is not None:
                self.seen["lost with what it had taken"] += 1
                self.host.returned(taken)
            return
        if taken is None:
            taken, slot.staged = slot.staged, None  # staged after the worker had looked
        slot.work, slot.items = None, None
        self.seen["finished"] += 1
        if taken is None:
            self.host.finished(work, results)
            return
        self.seen["taken"] += 1
        self.host.finished(work, results)
        self._begin(slot, taken)
        self.host.taken(taken)

    def stage(self, work: Any) -> None:
        slot = self.slots[work.replica]
        assert slot.up and slot.work is not None and slot.staged is None, f"{work!r} cannot be staged"
        self.seen["staged"] += 1
        slot.staged = work

    def revoke(self, work: Any) -> bool:
        slot = self.slots[work.replica]
        if slot.staged is not work:
            self.seen["revoked too late"] += 1
            return False
        self.seen["revoked"] += 1
        slot.staged = None
        return True

    def cancel(self, work: Any) -> None:
        slot = self.slots[work.replica]
        if slot.work is not work or slot.reports:
            return
        slot.stopping = True
        self.seen["stop ordered"] += 1
        if self.body.streams:
            if slot.blocked:
                slot.blocked = False
                self._later(slot, work, self._step)
        elif self.random.random() < 0.5:
            self.seen["stopped early"] += 1
            self.loop.call_soon(self._due, slot, work, self._stopped)

    def _stopped(self, slot: _Slot, work: Any) -> None:
        self._ended(slot, work, cancelled(work.requests))

    def resume(self, work: Any, count: int = 1) -> None:
        slot = self.slots[work.replica]
        if slot.work is work:
            slot.acknowledged += count
            if slot.blocked and slot.sent - slot.acknowledged <= self.window // 2:
                slot.blocked = False
                self._later(slot, work, self._step)

    def crash(self, index: int, restart: float) -> None:
        """The replica dies and comes back after `restart` seconds."""
        slot = self.slots[index]
        if not slot.up or self.stopped:
            return
        slot.up = False
        self.seen["crash"] += 1
        error = WorkerLost(f"{self.body.name}[{index}] was killed")
        self.host.replica_down(index, error)
        staged, slot.staged = slot.staged, None
        if staged is not None:
            self.seen["crash with staged work"] += 1
            self.host.returned(staged)
        self._lose(slot, error)
        self.loop.call_later(restart, self._restart, slot, index)

    def _lose(self, slot: _Slot, error: BaseException) -> None:
        work, slot.work, slot.items = slot.work, None, None
        if work is not None:
            self.seen["crash while running"] += 1
            self.host.finished(work, [error] * len(work.requests))

    def _restart(self, slot: _Slot, index: int) -> None:
        if not self.stopped and slot.loaded and self.slots[index] is slot:
            slot.up = True
            self.host.replica_up(index)

    async def stop(self, within: float) -> None:
        for slot in self.slots:
            staged, slot.staged = slot.staged, None
            if staged is not None:
                self.host.returned(staged)
        late = self.loop.time() + within
        while any(slot.work is not None for slot in self.slots) and self.loop.time() < late:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.03)  # reports that are under way
        for slot in self.slots:
            self._lose(slot, WorkerLost(f"{self.body.name} was stopped"))
        self.stopped = True
