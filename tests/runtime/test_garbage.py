"""However a call ends, nothing is left for the cycle collector: a server has it run rarely."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from collector import garbage
from executors import bodies

import penstock as ps
from penstock.errors import PenstockError

RUNS = 10
release = threading.Event()


def gate(how: str) -> None:
    """What a body does that does not simply answer."""
    if how == "fail":
        raise ValueError("broken")
    if how == "hang":
        release.wait(10)


@ps.service
async def inline(how: str) -> int:
    if how == "hang":
        await asyncio.Event().wait()
    gate(how)
    return 1


@ps.service(on=ps.Thread(2))
def thread(how: str) -> int:
    gate(how)
    return 1


@ps.service(on=ps.Thread(2), batch=ps.Batch(max_size=4, max_wait=0.001))
def batched(hows: list[str]) -> list[int]:
    gate(hows[0])
    return [1] * len(hows)


@ps.service
async def nested(how: str) -> int:
    return await inline(how)


@ps.service(limit=ps.Fixed(1))
async def queued(how: str) -> int:
    return await inline(how)


@ps.service(cache=ps.Cache(ttl=1e-9))
async def shared(how: str) -> int:
    return await inline(how)


@ps.service
async def stream(how: str) -> AsyncIterator[int]:
    for n in range(4):
        yield n
    yield await inline(how)


@ps.service(on=ps.Thread(2))
def stream_in_thread(how: str) -> Iterator[int]:
    yield from range(4)
    gate(how)
    yield 4


@ps.service
async def stream_of_stream(how: str) -> AsyncIterator[int]:
    async for item in stream(how):
        yield item


class Counts:
    """A model in steps that counts each request's steps."""

    def __init__(self) -> None:
        self.requests: dict[int, list[Any]] = {}

    def add(self, slot: int, how: str) -> None:
        self.requests[slot] = [how, 0]

    def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:
        out: list[tuple[int, Any]] = []
        for slot in slots:
            request = self.requests[slot]
            request[1] += 1
            if request[1] <= 4 or request[0] == "hang":
                out.append((slot, request[1]))
            else:
                out.append((slot, ValueError("broken") if request[0] == "fail" else ps.END))
        return out

    def drop(self, slot: int) -> None:
        del self.requests[slot]


class AsyncCounts(Counts):
    async def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().step(slots)


slots = ps.service(Counts, name="slots", batch=ps.Slots(2), on=ps.Thread())
slots_inline = ps.service(AsyncCounts, name="slots_inline", batch=ps.Slots(2))

UNARY = (inline, thread, batched, nested, queued, shared)
STREAMS = (stream, stream_in_thread, stream_of_stream, slots, slots_inline)


async def once(service: Any, how: str) -> None:
    if service.streams:
        async for _ in service(how):
            pass
    else:
        await service(how)


async def started(service: Any, how: str) -> None:
    await service(how).start()


async def broken_off(service: Any, how: str) -> None:
    items = service(how).__aiter__()
    async for item in items:
        if item == 2:
            break
    await items.aclose()


async def ended(runtime: ps.Runtime, use: Callable[..., Awaitable[None]], service: Any, ending: str) -> None:
    """One call from a caller of its own, which holds nothing afterwards."""
    within = {"expired": 0.01, "refused": 1e-9}.get(ending)
    with ps.budget(within=within):
        task = asyncio.ensure_future(use(service, {"ok": "ok", "failed": "fail"}.get(ending, "hang")))
    if ending == "cancelled":
        await until(lambda: runtime.snapshot()[service.name].in_flight > 0)
        task.cancel()
    await asyncio.wait([task])
    release.set()
    await until(lambda: not runtime.busy())
    release.clear()
    assert (not task.cancelled() and task.exception() is None) == (ending in ("ok", "left"))


async def until(condition: Callable[[], bool]) -> None:
    end = asyncio.get_running_loop().time() + 20
    while not condition():
        assert asyncio.get_running_loop().time() < end, "the condition never came true"
        await asyncio.sleep(0.0005)


ENDINGS = ("ok", "failed", "cancelled", "expired", "refused")
CASES = [(once, service, ending) for service in (*UNARY, *STREAMS) for ending in ENDINGS]
CASES += [(started, service, ending) for service in UNARY for ending in ENDINGS]
CASES += [(broken_off, service, "left") for service in STREAMS]


@pytest.mark.parametrize(("use", "service", "ending"), CASES, ids=lambda part: getattr(part, "__name__", None))
def test_no_ending_leaves_cycles(use: Callable[..., Awaitable[None]], service: Any, ending: str) -> None:
    async def main() -> None:
        async with ps.Runtime(*UNARY, *STREAMS) as runtime:
            await ended(runtime, use, service, ending)
            with garbage() as found:
                for _ in range(RUNS):
                    await ended(runtime, use, service, ending)
            assert not found

    asyncio.run(main())


def test_child_processes_leave_no_cycles() -> None:
    async def ask(call: Any) -> None:
        with suppress(ValueError, PenstockError):
            await call

    async def read(items: Any) -> None:
        async for item in items:
            if item == 9:
                break
        await items.aclose()

    uses = {
        "answered": lambda: ask(bodies.die("fine")),
        "failed": lambda: ask(bodies.die("raise")),
        "cannot be pickled": lambda: ask(bodies.echo(lambda: None)),
        "one of a batch failed": lambda: ask(bodies.halves(1)),
        "stream": lambda: read(bodies.count(5).__aiter__()),
        "stream left": lambda: read(bodies.count(100_000).__aiter__()),
        "async stream left": lambda: read(bodies.acount(100_000).__aiter__()),
    }

    async def main() -> None:
        async with ps.Runtime(bodies.die, bodies.echo, bodies.halves, bodies.count, bodies.acount) as runtime:
            for name, use in uses.items():
                for counted in (False, True):
                    with garbage() as found:
                        for _ in range(RUNS if counted else 1):
                            await asyncio.ensure_future(use())  # a task of its own, which holds nothing afterwards
                            await until(lambda: not runtime.busy())
                assert not found, name

    asyncio.run(main())
