"""Storms of hand-offs: random starts, stagings, revocations and cancels; every work is accounted for exactly once.

No sleeps: the storm advances on what the executor reports, and a lost wake-up shows as a work that never ends.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest

from penstock.executors.base import Body, Process
from penstock.executors.process import ProcessExecutor
from penstock.executors.thread import ThreadExecutor

from . import targets
from .fake import Host, Work, batch, work

SEEDS = range(int(os.environ.get("PENSTOCK_HANDOFF_SEEDS", "8")))


class Storm(Host):
    """A core of dice: keeps every replica busy in some random way until `total` works were made."""

    def __init__(self, seed: int, replicas: int, total: int, depth: int, kind: str) -> None:
        super().__init__()
        self.dice = random.Random(seed)
        self.current: list[Work | None] = [None] * replicas
        self.staged: list[deque[Work]] = [deque() for _ in range(replicas)]
        self.left = total
        self.depth = depth
        self.kind = kind
        self.counts = {"finished": 0, "revoked": 0, "cancelled": 0, "staged": 0, "produced": 0}
        self.over = asyncio.Event()

    def make(self, replica: int) -> Work:
        self.left -= 1
        if self.kind == "batch":
            return batch(*range(self.dice.randint(1, 5)), replica=replica)
        if self.kind == "stream":
            return work(self.dice.choice((0, 1, 5, 40)), replica=replica)
        return work(self.dice.choice((0, 0, 0, 1, 20)), replica=replica)

    def feed(self, replica: int, often: float = 1.0) -> None:
        """One turn for a replica; called after whatever happened there, never from within `run`."""
        dice, staged = self.dice, self.staged[replica]
        if self.current[replica] is None and not staged and self.left > 0:
            self.current[replica] = self.run(self.make(replica))
        while self.left > 0 and self.current[replica] is not None and len(staged) < self.depth and dice.random() < 0.7:
            staged.append(self.stage(self.make(replica)))
            self.counts["staged"] += 1
        if staged and dice.random() < 0.3 * often:
            unit = dice.choice(staged)
            if self.revoke(unit):
                staged.remove(unit)
                self.counts["revoked"] += 1
        running = self.current[replica]
        if running is not None and dice.random() < 0.1 * often:
            self.executor.cancel(running)
            self.counts["cancelled"] += 1
        if self.current[replica] is None and not staged and self.left > 0:
            self.feed(replica, often)
        if self.left <= 0 and not any(self.current) and not any(self.staged):
            self.over.set()

    def poke(self) -> None:
        """The loop's own turns: a revocation may then meet a thread that is just taking."""
        for replica in range(len(self.current)):
            self.feed(replica, 0.05)
        if not self.over.is_set():
            asyncio.get_running_loop().call_soon(self.poke)

    def taken(self, work: Work) -> None:
        super().taken(work)
        assert self.current[work.replica] is None, "taken before its predecessor ended"
        assert self.staged[work.replica].popleft() is work, "taken out of order"
        self.current[work.replica] = work
        self.feed(work.replica)

    def finished(self, work: Work, results: Sequence[Any], seconds: float | None = None) -> None:
        super().finished(work, results, seconds)
        assert self.current[work.replica] is work
        self.current[work.replica] = None
        self.counts["finished"] += 1
        for request, result in zip(work.requests, results, strict=True):
            if self.kind == "stream":
                assert result is None or isinstance(result, asyncio.CancelledError), result
                assert work.items == list(range(len(work.items)))
                if result is None:
                    assert len(work.items) == request.item.args[0]
            else:
                assert result == request.item.args[0], result
        self.feed(work.replica)

    def produced(self, work: Work, items: Sequence[Any]) -> None:
        super().produced(work, items)
        self.counts["produced"] += len(items)

    def returned(self, work: Work) -> None:
        raise AssertionError("nothing was stopped")


async def storm(executor: Any, host: Storm, total: int) -> None:
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    host.executor = executor
    await executor.start()
    host.poke()
    try:
        async with asyncio.timeout(60):
            await host.over.wait()
    except TimeoutError:
        raise AssertionError(f"stuck: {host.current} {host.staged} {host.counts} {errors[:1]}") from None
    await executor.stop(5.0)
    assert not errors
    assert not host.broken
    assert host.counts["finished"] + host.counts["revoked"] == total
    assert host.counts["revoked"]
    assert host.counts["cancelled"]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["unary", "batch", "stream", "class"])
def test_threads(seed: int, kind: str) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    replicas, total = dice.randint(1, 4), 2000

    async def main() -> None:
        host = Storm(seed, replicas, total, 1, kind)
        target = {"unary": targets.spin, "batch": targets.same, "stream": targets.count, "class": targets.Spinner}[kind]
        body = Body("svc", target, batched=kind == "batch", streams=kind == "stream", is_class=kind == "class")
        loop = asyncio.get_running_loop()
        await storm(ThreadExecutor(body, host, loop, replicas, buffer=dice.choice((1, 2, 16))), host, total)

    asyncio.run(main())


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize("kind", ["unary", "batch", "stream"])
def test_processes(seed: int, kind: str) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    total = 1000

    async def main() -> None:
        host = Storm(seed, 2, total, 1, kind)
        target = {"unary": targets.spin, "batch": targets.same, "stream": targets.count}[kind]
        body = Body("svc", target, batched=kind == "batch", streams=kind == "stream")
        loop = asyncio.get_running_loop()
        await storm(ProcessExecutor(body, host, loop, Process(2), 1, buffer=dice.choice((1, 2, 16))), host, total)

    asyncio.run(main())
