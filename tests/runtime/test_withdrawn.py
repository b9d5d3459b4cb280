"""What is cancelled because others failed teaches nothing about patience: what comes next is not refused for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest

import penstock as ps
from penstock.errors import Overloaded
from penstock.sim.loop import VirtualLoop


@ps.service(limit=ps.Fixed(1))
async def inverse(x: int) -> float:
    await asyncio.sleep(1.0)
    return 1 / x


@ps.service(batch=ps.Batch(max_size=2, max_wait=0.0))
async def inverses(xs: list[int]) -> list[float | Exception]:
    await asyncio.sleep(1.0)
    return [1 / x if x else ZeroDivisionError() for x in xs]


def virtually(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(body())
    finally:
        loop.close()


async def mapped(service: Any) -> None:
    async for _ in ps.map(service, [1, 2, 0, 3, 4, 5, 6], concurrency=7):
        pass


async def joined(service: Any) -> None:
    await ps.join(*map(service, [1, 2, 0, 3, 4, 5, 6]))


async def hurried(service: Any) -> None:
    async with asyncio.timeout(3.5):
        await ps.join(*map(service, [1, 2, 3, 4, 5, 6, 7, 8]))


@pytest.mark.parametrize("service", [inverse, inverses], ids=lambda service: service.name)
@pytest.mark.parametrize(("use", "error"), [(mapped, ZeroDivisionError), (joined, ZeroDivisionError), (hurried, TimeoutError)])
def test_only_who_could_not_wait_has_left(service: Any, use: Callable[[Any], Awaitable[None]], error: type[Exception]) -> None:
    async def main() -> None:
        async with ps.Runtime(service, clock=asyncio.get_running_loop().time, watch=False) as runtime:
            for _ in range(10):
                with pytest.raises((error, Overloaded)):
                    await use(service)
            patience = runtime.scheduler.stations[service.name].patience
            assert patience is not None and patience.leaving == (error is TimeoutError)
            if error is ZeroDivisionError:
                assert [answer async for answer in ps.map(service, range(1, 9), concurrency=8)] == [1 / x for x in range(1, 9)]

    virtually(main)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_thread_that_breaks_off_its_map(ordered: bool) -> None:
    gate, begun = threading.Event(), threading.Event()

    def body(x: int) -> int:
        begun.set()
        assert gate.wait(30.0) or not x
        return x

    waits = ps.service(lambda x: body(x) if x else x, name="waits", on=ps.Thread(1))
    with ps.Runtime(waits) as runtime:
        futures = waits.map(range(8), concurrency=6, ordered=ordered)
        assert next(futures).result() == 0
        assert begun.wait(30.0)
        futures.close()
        gate.set()
        assert waits.submit(0).result() == 0
        patience = runtime.scheduler.stations["waits"].patience
        assert patience is not None and not patience.leaving


@ps.service
async def counts(n: int) -> AsyncIterator[int]:
    for x in range(1, n + 1):
        yield x


@pytest.mark.filterwarnings("ignore:a call of counts was never awaited")
def test_a_stream_is_a_source_and_no_plain_iterable() -> None:
    async def main() -> None:
        async with ps.Runtime(counts, inverses, clock=asyncio.get_running_loop().time, watch=False):
            assert [answer async for answer in ps.map(inverses, counts(4))] == [1.0, 0.5, 1 / 3, 0.25]
            with pytest.raises(TypeError, match="not iterable"):
                list(counts(4))  # type: ignore[call-overload]

    virtually(main)
