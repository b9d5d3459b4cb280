"""Models with slots that come and go: their slots come together, and go when the last request in them has ended."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psutil
import pytest

import penstock as ps
from penstock.core.check import check, idle
from penstock.policy import Scale
from penstock.runtime import replicas

from . import slot_bodies as bodies

LONG = 200  # items; more than a buffer holds

services = pytest.mark.parametrize("service", [bodies.threaded, bodies.inline, bodies.child], ids=["thread", "loop", "process"])


def run(body: Any, *services: Any) -> None:
    async def main() -> None:
        runtime = ps.Runtime(*services)
        async with runtime:
            await asyncio.wait_for(body(runtime), 60)
            check(runtime.scheduler, runtime.clock())
        idle(runtime.scheduler)

    asyncio.run(main())


async def settled(runtime: ps.Runtime, service: Any, models: int) -> None:
    """Until so many models are left, and all others have been put away."""
    station = runtime.bindings[service].station
    while station.servers != models * station.slots or any(r.leaving and not r.vacant for r in station.replicas):
        await asyncio.sleep(0.001)


async def begun(service: Any, count: int) -> list[Any]:
    """So many streams in slots, each after its first word."""
    streams = [service("word", LONG).__aiter__() for _ in range(count)]
    for stream in streams:
        await anext(stream)
    return streams


async def rest(stream: Any) -> int:
    return len([word async for word in stream])


@services
def test_what_runs_in_a_retired_model_goes_on_to_its_end(service: Any) -> None:
    async def body(runtime: ps.Runtime) -> None:
        first = await begun(service, 4)
        await runtime.scale(service, 2)
        assert runtime.replicas.state(runtime.bindings[service]).ready == 2
        second = await begun(service, 4)
        await runtime.scale(service, 1)
        state = runtime.replicas.state(runtime.bindings[service])
        assert (state.wanted, state.ready) == (1, 1) and runtime.snapshot()[service.name].in_flight == 8
        assert await asyncio.gather(*map(rest, first + second)) == [LONG - 1] * 8
        await settled(runtime, service, 1)
        streams = await begun(service, 4)
        assert runtime.snapshot()[service.name].in_flight == 4
        assert await asyncio.gather(*map(rest, streams)) == [LONG - 1] * 4

    run(body, service)


@services
def test_all_models_are_replaced_while_streams_go_on(service: Any) -> None:
    async def body(runtime: ps.Runtime) -> None:
        await runtime.scale(service, 2)
        ends: list[int] = []
        stop = False

        async def read() -> None:
            while not stop:
                ends.append(len([word async for word in service("word", 20)]))

        readers = [asyncio.ensure_future(read()) for _ in range(12)]
        while len(ends) < 24:
            await asyncio.sleep(0)
        await runtime.roll(service)
        seen = len(ends)
        while len(ends) < seen + 24:
            await asyncio.sleep(0)
        stop = True
        await asyncio.gather(*readers)
        assert set(ends) == {20} and runtime.snapshot()[service.name].outcomes == {"ok": len(ends)}

    run(body, service)


def test_the_processes_of_a_roll_are_new_and_the_old_ones_gone() -> None:
    async def body(runtime: ps.Runtime) -> None:
        executor: Any = runtime.bindings[bodies.children].executor
        old = set(executor.processes)
        await runtime.roll(bodies.children)
        assert len(executor.processes) == 2 and not old & set(executor.processes)
        assert not any(map(psutil.pid_exists, old))
        await runtime.scale(bodies.children, 3)
        await runtime.scale(bodies.children, 1)
        await settled(runtime, bodies.children, 1)
        assert len(executor.processes) == 1
        assert await asyncio.gather(*map(rest, await begun(bodies.children, 2))) == [LONG - 1] * 2

    run(body, bodies.children)


def test_a_model_that_dies_while_it_is_retired_is_not_started_again(caplog: Any) -> None:
    async def body(runtime: ps.Runtime) -> None:
        await runtime.scale(bodies.child, 2)
        streams = await begun(bodies.child, 8)
        executor: Any = runtime.bindings[bodies.child].executor
        await runtime.scale(bodies.child, 1)
        (leaving,) = [
            each for each in executor.replicas if runtime.bindings[bodies.child].station.replicas[each.index * 4].leaving
        ]
        with caplog.at_level(logging.ERROR):
            leaving.child.kill()
            found = await asyncio.gather(*map(rest, streams), return_exceptions=True)
        assert sorted(map(str, found)).count(str(LONG - 1)) == 4, found
        await settled(runtime, bodies.child, 1)
        while len(executor.processes) > 1:
            await asyncio.sleep(0.001)
        await runtime.scale(bodies.child, 2)
        assert await asyncio.gather(*map(rest, await begun(bodies.child, 8))) == [LONG - 1] * 8

    run(body, bodies.child)


def test_a_model_that_does_not_load_leaves_no_trace() -> None:
    made = 0

    class Second(bodies.Words):
        def __init__(self) -> None:
            nonlocal made
            made += 1
            if made == 2:
                raise OSError("no weights")
            super().__init__()

    service = ps.service(Second, name="second", batch=ps.Slots(2), on=ps.Thread())

    async def body(runtime: ps.Runtime) -> None:
        with pytest.raises(OSError, match="no weights"):
            await runtime.roll(service)
        await settled(runtime, service, 1)
        assert await asyncio.gather(*map(rest, await begun(service, 2))) == [LONG - 1] * 2
        await runtime.roll(service)
        assert made == 3

    run(body, service)


def test_the_rule_counts_models_and_not_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_EVERY", 0.001)
    policy = Scale(1, 2, delay=0.0, up_after=0.002, down_after=0.02)
    service = ps.service(bodies.Words, name="ruled", batch=ps.Slots(4), on=ps.Thread(replicas=policy))

    async def body(runtime: ps.Runtime) -> None:
        streams = await begun(service, 4)
        fifth = asyncio.ensure_future(begun(service, 1))
        streams += await fifth
        assert runtime.replicas.state(runtime.bindings[service]).wanted == 2
        await asyncio.gather(*map(rest, streams))
        await settled(runtime, service, 1)

    run(body, service)
