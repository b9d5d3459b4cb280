"""A storm on the whole runtime: its public names, on a loop in virtual time, with simulated replicas that crash.

Callers come at random, await, stream, map, join, cancel, leave early, give up, and raise in callbacks; sometimes the
runtime is drained in the middle. Every call must end once, with one line in the log whose parts sum up; nothing may
hang; every lease must come back. `python -m penstock.sim.runtime_storm --seed N` replays one storm and prints it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

from penstock.context import Budget
from penstock.core.check import check, idle
from penstock.core.request import ENDED
from penstock.errors import ShuttingDown
from penstock.runtime.call import BoundCall
from penstock.runtime.driver import Runtime
from penstock.runtime.log import Entry
from penstock.service import Service
from penstock.sim.callers import Callers
from penstock.sim.laws import Laws
from penstock.sim.loop import VirtualLoop
from penstock.sim.models import Bad
from penstock.sim.place import Places
from penstock.sim.services import application

CALLERS = 50
FAULTS = 6
LONGEST = 59.0  # virtual seconds: less than the default time-outs, behind which a lost wake-up could hide


class _Runtime(Runtime):
    """Remembers every call that was made."""

    made: list[BoundCall]

    def call(self, service: Service[..., Any], args: Any, kwargs: Any, budget: Budget | None = None, **more: Any) -> BoundCall:
        call = super().call(service, args, kwargs, budget, **more)
        self.made.append(call)
        return call


class RuntimeStorm:
    """One seeded run. `trace` is the log without ids, the same for the same seed; `seen` counts what was reached."""

    def __init__(self, seed: int, callers: int = CALLERS) -> None:
        self.random = Random(seed)
        self.callers = callers
        self.loop = VirtualLoop()
        self.places = Places(self.random, window=self.random.choice((1, 2, 4)))
        self.services = application(self.random)
        self.seen: Counter[str] = self.places.seen
        self.entries: list[Entry] = []
        self.scaling: list[asyncio.Task[None]] = []
        self.runtime = _Runtime(
            *self.services.values(),
            profile="edge",  # the same on every machine
            clock=self.loop.time,
            place=self.places,
            watch=False,
            random=Random(seed + 1),
            grace=self.random.choice((0.0, 0.5, 30.0)),
        )
        self.runtime.made = []
        self.laws = Laws(self.runtime)

    def run(self) -> RuntimeStorm:
        """To the end; raises AssertionError when a law is broken."""
        logging.disable(logging.CRITICAL)  # callbacks that raise are reported there, as they should be
        try:
            self.loop.run_until_complete(asyncio.wait_for(self.storm(), LONGEST))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.close()
        finally:
            logging.disable(logging.NOTSET)
            self.loop.watch(None)
            self.loop.close()
        return self

    async def storm(self) -> None:
        runtime, random = self.runtime, self.random
        self.loop.watch(self.look)
        await runtime.start()
        runtime.log.subscribe(self.log)
        callers = Callers(random, self.services, self.seen)
        tasks = [self.loop.create_task(callers.call(n, random.uniform(0.0, 1.0))) for n in range(self.callers)]
        for _ in range(FAULTS):
            self.loop.call_later(random.uniform(0.0, 2.0), self.crash)
        for _ in range(3):
            self.loop.call_later(random.uniform(0.0, 1.5), self.scale)
        stop = self.loop.create_task(self.stop_early()) if random.random() < 0.3 else None
        await asyncio.gather(*tasks)
        await asyncio.sleep(2.0)
        for task in self.scaling:
            task.cancel()  # one that waits for a replica which is stuck
        for raised in await asyncio.gather(*self.scaling, return_exceptions=True):
            if isinstance(raised, Exception):
                raise raised
        if stop is not None:
            await stop
        for _ in range(3):
            await asyncio.sleep(0)
        left = [call for call in runtime.made if call.request.station is not None and not call.request.outcome]
        assert not left, f"all callers have gone, and yet these go on: {left}"
        await runtime.stop()

    def look(self) -> None:
        """Between two callbacks."""
        check(self.runtime.scheduler, self.loop.time())
        self.laws.look(self.loop.time())

    async def stop_early(self) -> None:
        self.seen["stopped in the middle"] += 1
        await asyncio.sleep(self.random.uniform(0.8, 2.0))
        await self.runtime.stop(self.random.choice((0.0, 0.05, 1.0)))

    def crash(self) -> None:
        executor = self.random.choice(self.places.made)
        executor.crash(self.random.randrange(len(executor.slots)), self.random.uniform(0.0, 0.5))

    def scale(self) -> None:
        if not self.runtime.closing:
            self.scaling.append(self.loop.create_task(self._scale()))

    async def _scale(self) -> None:
        """More replicas, fewer, or all of them new, while everything goes on."""
        service = self.random.choice([s for s in self.services.values() if not s.is_async or s.body.steps])
        if service.body.steps:
            self.seen["slots scaled"] += 1
        count, whole = self.random.choice((0, 1, 2, 4)), False
        try:
            if count:
                await self.runtime.scale(service, count)
            else:
                await self.runtime.roll(service)
                self.seen["rolled"] += 1
            whole = True
        except (asyncio.CancelledError, ShuttingDown):
            self.seen["stopped while it scaled"] += 1
        except Bad:
            self.seen["not scaled, since one did not load"] += 1
        if count:
            self.laws.scaled(self.runtime.bindings[service], count, whole)

    def log(self, entries: Sequence[Entry]) -> None:
        self.entries += entries

    @property
    def trace(self) -> list[str]:
        return [f"{entry[1:14]} {entry.root}" for entry in self.entries]

    def close(self) -> None:
        """What must hold when all is over."""
        self.runtime.log.flush()  # calls that were refused after the end
        idle(self.runtime.scheduler)
        lines = Counter(entry.id for entry in self.entries)
        for call in self.runtime.made:
            request = call.request
            if request.station is None:
                assert lines[request.id] == 0 or not request.id, f"{call!r} was never submitted and yet has a line"
                continue
            assert request.outcome and request.state == ENDED, f"{call!r} never ended ({request!r})"
            assert lines[request.id] == 1, f"{call!r} has {lines[request.id]} lines in the log"
            self.seen[f"outcome: {request.outcome}"] += 1
        for entry in self.entries:
            self.seen[f"{entry.service}: {entry.outcome}"] += 1
            self.seen[f"error: {entry.error or 'none'}"] += 1
            parts = (entry.queued, entry.batched, entry.ran, entry.streamed)
            assert min(parts) >= -1e-9, f"{entry} has a negative part"
        gc.collect(0)
        assert not self.loop.failures, f"unhandled: {self.loop.failures}"
        left = [task for task in asyncio.all_tasks(self.loop) if not task.done()]
        assert not left, f"tasks were left behind: {left}"


def main() -> None:
    """Replay a storm."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, required=True)
    storm = RuntimeStorm(parser.parse_args().seed)
    try:
        storm.run()
    finally:
        print(*storm.trace, sep="\n")
        print(dict(sorted(storm.seen.items())))


if __name__ == "__main__":
    main()
