"""`Call.cancel()` of a stream, by its reader or by somebody else, between two items or while one is awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import penstock as ps
from penstock.core.check import idle
from penstock.errors import DeadlineExceeded
from penstock.sim.loop import VirtualLoop

CLOSED: list[str] = []
ENDLESS = 10**9


@ps.service
async def on_loop(n: int, then: float = 0.0) -> AsyncIterator[int]:
    try:
        for i in range(n):
            yield i
            await asyncio.sleep(0)
        await asyncio.sleep(then)
    finally:
        CLOSED.append("on_loop")


gate = threading.Event()


@ps.service
def in_thread(n: int, then: float = 0.0) -> Iterator[int]:
    try:
        yield from range(n)
        gate.wait(then)
    finally:
        CLOSED.append("in_thread")


SERVICES = pytest.mark.parametrize("service", [on_loop, in_thread], ids=lambda service: service.name)


def run(service: Any, body: Any) -> None:
    async def main() -> None:
        async with ps.Runtime(service, grace=0.0) as runtime:
            CLOSED.clear()
            gate.clear()
            async with asyncio.timeout(20.0):
                await body()
                gate.set()
                while runtime.busy():
                    await asyncio.sleep(0.001)
            idle(runtime.scheduler)
            task = asyncio.current_task()
            assert task is not None and not task.cancelling()
            assert [service.name] == CLOSED

    asyncio.run(main())


@SERVICES
def test_the_reader_itself_between_two_items(service: Any) -> None:
    async def body() -> None:
        call = service(ENDLESS)
        seen = []

        async def read() -> None:
            async for item in call:
                seen.append(item)
                if item == 2:
                    assert call.cancel() and call.status == "cancelled" and not call.cancel()
                await asyncio.sleep(0)  # nothing but the stream is cancelled

        with pytest.raises(asyncio.CancelledError):
            await read()
        assert seen == [0, 1, 2]

    run(service, body)


@SERVICES
@pytest.mark.parametrize("leaves", ["break", "aclose"])
def test_the_reader_that_cancels_and_leaves_hears_nothing(service: Any, leaves: str) -> None:
    async def body() -> None:
        call = service(ENDLESS)
        items = call.__aiter__()
        async for _ in items:
            call.cancel()
            break
        if leaves == "aclose":
            await items.aclose()
        else:
            del items

    run(service, body)


@SERVICES
def test_somebody_else_while_an_item_is_awaited(service: Any) -> None:
    async def body() -> None:
        call = service(3, 20.0)
        seen: list[int] = []

        async def read() -> None:
            async for item in call:
                seen.append(item)

        reader = asyncio.ensure_future(read())
        while seen != [0, 1, 2]:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)
        assert call.cancel()
        await asyncio.wait([reader])
        assert reader.cancelled() and call.status == "cancelled"

    run(service, body)


def test_a_deadline_that_passes_between_two_items_runs_the_body_no_further() -> None:
    steps = []

    @ps.service
    async def counts() -> AsyncIterator[int]:
        while True:
            steps.append(len(steps))
            yield len(steps)

    async def read() -> None:
        with ps.budget(within=1.0):
            async for _ in counts():
                await asyncio.sleep(2.0)

    async def main() -> None:
        async with ps.Runtime(counts, clock=loop.time, watch=False) as runtime:
            with pytest.raises(DeadlineExceeded):
                await read()
            assert steps == [0]
            idle(runtime.scheduler)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
