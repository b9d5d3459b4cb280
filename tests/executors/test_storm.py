"""Storms of hand-offs: random starts, stagings, revocations, cancels and stops over real threads and children; every work
is accounted for exactly once.

No sleeps: a storm advances on what the executor reports, and a lost wake-up shows as a work that never ends. Some storms
keep the loop turning, so that it meets threads in the middle of things; in the others it sleeps and must be woken.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import penstock as ps
from penstock.core.check import check, idle
from penstock.errors import PenstockError
from penstock.executors import bell, pool
from penstock.executors.base import Body, Process
from penstock.executors.process import ProcessExecutor
from penstock.executors.thread import ThreadExecutor

from . import targets
from .fake import Host, Work, batch, work

SEEDS = range(int(os.environ.get("PENSTOCK_HANDOFF_SEEDS", "8")))
TARGETS = {"unary": targets.spin, "batch": targets.same, "stream": targets.count, "class": targets.Spinner}
KINDS = pytest.mark.parametrize("kind", list(TARGETS))


@contextmanager
def seeded(seed: int) -> Iterator[random.Random]:
    """Random numbers for one storm; what fails says with which.

    Threads give way to each other often or seldom; the pool takes short works for short ones, or wakes a thread for each;
    and the kernel may have no eventfd.
    """
    dice, interval, short, eventfd = random.Random(seed), sys.getswitchinterval(), pool.SHORT, bell._eventfd
    sys.setswitchinterval(dice.choice((interval, 1e-6)))
    pool.SHORT = dice.choice((short, 0.0))
    bell._eventfd = dice.choice((eventfd, eventfd, lambda flags=0: -1))
    try:
        yield dice
    except BaseException as error:
        error.add_note(f"seed={seed}; threads interleave anew each time: PENSTOCK_HANDOFF_SEEDS={seed + 1} tries it again")
        raise
    finally:
        sys.setswitchinterval(interval)
        pool.SHORT, bell._eventfd = short, eventfd


class Storm(Host):
    """A core of dice: keeps every replica busy in some random way until `total` works were made."""

    def __init__(self, dice: random.Random, replicas: int, total: int, kind: str, *, stop_at: int = -1) -> None:
        super().__init__()
        self.dice = dice
        self.current: list[Work | None] = [None] * replicas
        self.staged: list[Work | None] = [None] * replicas
        self.left = total
        self.kind = kind
        self.stop_at = stop_at
        self.stopping: asyncio.Task[None] | None = None
        self.acknowledge = False
        self.turning = dice.random() < 0.5
        self.counts: Counter[str] = Counter()
        self.over = asyncio.Event()

    def make(self, replica: int) -> Work:
        self.left -= 1
        self.counts["made"] += 1
        if self.kind == "batch":
            return batch(*range(self.dice.randint(1, 5)), replica=replica)
        if self.kind == "stream":
            return work(self.dice.choice((0, 1, 5, 40)), replica=replica)
        return work(self.dice.choice((0, 0, 0, 1, 20)), replica=replica)

    def feed(self, replica: int, often: float = 1.0) -> None:
        """One turn for a replica; called after whatever happened there, never from within `run`."""
        dice = self.dice
        self.begin(replica)
        if self.left > 0 and self.current[replica] is not None and self.staged[replica] is None and dice.random() < 0.7:
            self.staged[replica] = self.stage(self.make(replica))
            self.counts["staged"] += 1
        behind = self.staged[replica]
        if behind is not None and dice.random() < 0.3 * often:
            self.counts["revoked" if self.revoke(behind) else "revoked too late"] += 1
            if behind.state == "revoked":
                self.staged[replica] = None
        running = self.current[replica]
        if running is not None and dice.random() < 0.1 * often:
            self.executor.cancel(running)
            self.counts["cancelled"] += 1
        self.begin(replica)
        if self.left <= 0 and not any(self.current) and not any(self.staged):
            self.over.set()

    def begin(self, replica: int) -> None:
        if self.left > 0 and self.current[replica] is None and self.staged[replica] is None:
            self.current[replica] = self.run(self.make(replica))

    def go(self) -> None:
        """All replicas at once, again and again where the loop is to turn."""
        for replica in range(len(self.current)):
            self.feed(replica, 0.05 if self.turning else 1.0)
        if self.turning and not self.over.is_set():
            asyncio.get_running_loop().call_soon(self.go)

    def taken(self, work: Work) -> None:
        super().taken(work)
        assert self.current[work.replica] is None, "taken before its predecessor ended"
        assert self.staged[work.replica] is work, "taken out of order"
        self.current[work.replica], self.staged[work.replica] = work, None
        self.feed(work.replica)

    def finished(self, work: Work, results: Sequence[Any], seconds: float | None = None, measured: bool = True) -> None:
        super().finished(work, results, seconds, measured)
        assert self.current[work.replica] is work
        self.current[work.replica] = None
        self.counts["finished"] += 1
        for request, result in zip(work.requests, results, strict=True):
            if isinstance(result, asyncio.CancelledError):
                assert self.kind == "stream" or self.stopping is not None
                self.counts["came cancelled"] += 1
            elif self.kind == "stream":
                assert (result, work.items) == (None, list(range(request.item.args[0])))
            else:
                assert result == request.item.args[0]
        assert work.items == list(range(len(work.items)))
        if self.counts["finished"] == self.stop_at:
            within = self.dice.choice((0.0, 5.0))
            self.stopping = asyncio.get_running_loop().create_task(self.executor.stop(within))
        self.feed(work.replica)

    def produced(self, work: Work, items: Sequence[Any]) -> None:
        super().produced(work, items)
        self.counts["produced"] += len(items)
        if self.dice.random() < 0.5:
            self.executor.resume(work, len(items))
        else:  # a slow reader, one by one
            for _ in items:
                asyncio.get_running_loop().call_soon(self.executor.resume, work)

    def returned(self, work: Work) -> None:
        assert self.stopping is not None, "nothing was stopped"
        super().returned(work)
        assert self.staged[work.replica] is work
        self.staged[work.replica] = None
        self.counts["returned"] += 1
        asyncio.get_running_loop().call_soon(self.feed, work.replica)


async def storm(executor: Any, host: Storm, patience: float = 60.0) -> Counter[str]:
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    host.executor = executor
    await executor.start()
    host.go()
    try:
        async with asyncio.timeout(patience):
            await host.over.wait()
    except TimeoutError:
        raise AssertionError(f"stuck: {host.current} {host.staged} {host.counts} {errors[:1]}") from None
    await (host.stopping or executor.stop(5.0))
    assert not errors, errors[0]
    assert not host.broken, host.broken
    counts = host.counts
    assert counts["finished"] + counts["revoked"] + counts["returned"] == counts["made"]
    return counts


async def over_threads(dice: random.Random, kind: str, total: int, stop_at: int = -1, patience: float = 60.0) -> Counter[str]:
    replicas = dice.randint(1, 4)
    host = Storm(dice, replicas, total, kind, stop_at=stop_at)
    body = Body("storm", TARGETS[kind], batched=kind == "batch", streams=kind == "stream", is_class=kind == "class")
    executor = ThreadExecutor(body, host, asyncio.get_running_loop(), replicas, buffer=dice.choice((1, 2, 16)))
    counts = await storm(executor, host, patience)
    assert await executor._settled(patience), "a thread has not ended"
    assert not executor._inbox
    assert not executor._shared.staged
    assert not executor._shared.streams
    assert not any(each.ready for each in executor._pools)
    return counts


@pytest.mark.parametrize("seed", SEEDS)
@KINDS
def test_threads(seed: int, kind: str) -> None:
    with seeded(seed) as dice:
        counts = asyncio.run(over_threads(dice, kind, 2000))
        for what in ("finished", "staged", "revoked", "cancelled"):
            assert counts[what], what
        assert counts["produced"] or kind != "stream"


@pytest.mark.parametrize("seed", SEEDS)
@KINDS
def test_threads_that_are_stopped_in_the_middle(seed: int, kind: str) -> None:
    with seeded(seed) as dice:
        for _ in range(10):
            counts = asyncio.run(over_threads(dice, kind, 60, stop_at=dice.randint(1, 30)))
            assert counts["made"] == 60


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize("kind", ["unary", "batch", "stream"])
def test_processes(seed: int, kind: str) -> None:
    async def main(dice: random.Random) -> None:
        host = Storm(dice, 2, 1000, kind)
        body = Body("storm", TARGETS[kind], batched=kind == "batch", streams=kind == "stream")
        loop = asyncio.get_running_loop()
        await storm(ProcessExecutor(body, host, loop, Process(2), 1, buffer=dice.choice((1, 2, 16))), host)

    with seeded(seed) as dice:
        asyncio.run(main(dice))


async def over_a_runtime(dice: random.Random) -> None:
    """Callers who wait, leave and come late, over every kind of thread service at once, to the end or to a stop."""
    device = ps.Pool("device", 2)
    replicas, needs = ps.Thread(dice.randint(1, 3)), {device: 1}
    services = {
        "unary": ps.service(targets.spin, on=replicas, needs=needs),
        "batch": ps.service(targets.same, on=replicas, batch=ps.Batch(max_size=4, max_wait=0.0)),
        "stream": ps.service(targets.count, on=replicas, buffer=dice.choice((1, 4))),
        "class": ps.service(targets.Spinner, on=replicas, needs=needs),
    }
    runtime = ps.Runtime(*services.values())

    async def caller(kind: str, size: int) -> None:
        with ps.budget(within=dice.choice((None, 20.0, 0.01))):
            if kind == "stream":
                assert [item async for item in services[kind](size)] == list(range(size))
            else:
                assert await services[kind](size) == size

    async with runtime:
        tasks = []
        for number in range(400):
            kind = dice.choice(list(services))
            tasks.append(asyncio.create_task(caller(kind, dice.choice((0, 1, 5, 40)))))
            if dice.random() < 0.3:
                dice.choice(tasks).cancel()
            if dice.random() < 0.3:
                await asyncio.wait([dice.choice(tasks)], timeout=5.0)
            check(runtime.scheduler, runtime.clock())
            if number == 300 and dice.random() < 0.5:
                await runtime.stop(dice.choice((0.0, 5.0)))
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
    for end in ends:
        if not isinstance(end, asyncio.CancelledError | PenstockError | None):
            raise end
    assert None in ends
    while runtime.busy():  # a thread that was abandoned holds its lease until it comes back
        await asyncio.sleep(0)
    idle(runtime.scheduler)


@pytest.mark.parametrize("seed", SEEDS)
def test_leases_come_back(seed: int) -> None:
    with seeded(seed) as dice:
        asyncio.run(over_a_runtime(dice))
