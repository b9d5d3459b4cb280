"""Everything at once: replicas are killed, stopped, hung, filled with garbage and out of memory, under load.

Each seed picks the faults and the load. Whatever happens: each request ends once, an answer is a right one, only what was
running in a process that died is lost, leases return to zero, and no process, segment or descriptor is left.
`PENSTOCK_PROCESS_SEEDS` says how many seeds (`make soak`: many).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import penstock as ps
from penstock.errors import ProgressTimeout, WorkerLost
from penstock.executors import process_life

from . import storm_bodies as bodies

SEEDS = int(os.environ.get("PENSTOCK_PROCESS_SEEDS", "3"))
SERVICES = (bodies.single, bodies.batched, bodies.stream)
LOST = (WorkerLost, ProgressTimeout, MemoryError)


class Storm:
    """One seed's callers and faults."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ended: Counter[str] = Counter()
        self.begun = 0
        self.deaths = 0
        self.harmful = 0
        self.over = False

    async def run(self) -> None:
        async with ps.Runtime(*SERVICES) as runtime:
            faults = asyncio.create_task(self.faults(runtime))
            await asyncio.gather(*(self.caller(n) for n in range(24)))
            self.over = True
            await faults
            for service in SERVICES:  # all are still there, or again; one may have been stopped a moment ago
                for attempt in range(bodies.REPLICAS + 1):
                    try:
                        await self.check(service)
                        break
                    except LOST:
                        assert attempt < bodies.REPLICAS
            async with asyncio.timeout(30):  # of callers who left, work may still be stopping
                while runtime.busy():
                    await asyncio.sleep(0.01)
            snapshot = runtime.snapshot()
            assert all(station.in_flight == 0 and station.queued == 0 for station in snapshot.values())
            for station in runtime.scheduler.stations.values():
                assert station.staged == station.coming == station.apart == 0 and not station.running
            self.deaths = runtime.restarts
        assert sum(self.ended.values()) == self.begun

    async def check(self, service: Any) -> None:
        if service is bodies.stream:
            assert [item async for item in service(5)] == list(range(5))
        else:
            answer = await (service(3) if service is bodies.single else service((3, "", b"x")))
            assert answer in (9, (9, b"x"))

    async def caller(self, n: int) -> None:
        rng = random.Random(self.rng.randrange(1 << 30))
        for k in range(40):
            how = rng.choice(("exit", "abort", "memory", "hang", "garbage")) if rng.random() < 0.006 else ""
            self.harmful += bool(how)
            patience = rng.choice((None, None, None, 0.001, 0.05))
            self.begun += 1
            try:
                async with asyncio.timeout(patience):
                    await self.call(rng, n * 1000 + k, how)
            except TimeoutError:
                self.ended["left"] += 1
            except LOST:
                self.ended["lost"] += 1
            else:
                self.ended["ok"] += 1
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.02)

    async def call(self, rng: random.Random, x: int, how: str) -> None:
        kind = rng.random()
        if kind < 0.4:
            assert await bodies.single(x, how) == x * x
        elif kind < 0.8:
            data = rng.randbytes(rng.choice((10, 100_000)))
            assert await bodies.batched((x, how, data)) == (x * x, data)
        else:
            count = rng.randrange(1, 200)
            assert [item async for item in bodies.stream(count, how)] == list(range(count))

    async def faults(self, runtime: ps.Runtime) -> None:
        for _ in range(self.rng.randrange(4, 14)):  # not without end: a slow machine must be able to catch up
            await asyncio.sleep(0.1 + self.rng.random() * 0.3)
            if self.over:
                return
            executor: Any = runtime.bindings[self.rng.choice(SERVICES)].executor
            if executor.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(
                        self.rng.choice(list(executor.processes)),
                        self.rng.choice((signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)),
                    )


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_storm_of_faults(seed: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(process_life, "PAUSES", (0.0, 0.01))
    if not seed:
        asyncio.run(Storm(-1).run())  # what is opened once for all stays open
    gc.collect()
    before, segments = len(os.listdir("/proc/self/fd")), sorted(os.listdir("/dev/shm"))
    storm = Storm(seed)
    asyncio.run(storm.run())
    gc.collect()
    told = f"seed {seed}: {dict(storm.ended)}, {storm.deaths} deaths, {storm.harmful} harmful calls"
    assert storm.ended["ok"] > storm.begun / 2, told
    # a death takes one single call, one stream, or a batch that was run again and again in vain
    assert storm.ended["lost"] <= 8 * (storm.deaths + storm.harmful), told
    assert len(os.listdir("/proc/self/fd")) == before, told
    assert sorted(os.listdir("/dev/shm")) == segments, told
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if b"executors/child" in Path(f"/proc/{pid}/cmdline").read_bytes()], told


PARENT = """
    import asyncio, sys
    sys.path.insert(0, {tests!r})
    import penstock as ps
    from executors import bodies, storm_bodies

    async def main():
        async with ps.Runtime(bodies.hanging, storm_bodies.single) as runtime:
            await storm_bodies.single(1)
            call = bodies.hanging("gil").start()
            pids = [pid for binding in runtime.bindings.values() for pid in binding.executor.processes]
            print(*pids, flush=True)
            await asyncio.Event().wait()

    if __name__ == "__main__":
        asyncio.run(main())
"""


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    """Also one that hangs in native code and holds the interpreter."""
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT.format(tests=str(Path(__file__).parent.parent))))
    segments = sorted(os.listdir("/dev/shm"))
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 3
    waiting = [os.pidfd_open(pid) for pid in pids]
    parent.kill()
    parent.wait()
    for fd in waiting:
        assert select.select([fd], [], [], 10.0)[0], "a child outlives its parent"
        os.close(fd)
    parent.stdout.close()
    assert sorted(os.listdir("/dev/shm")) == segments
