"""Replicas that come and go in running runtimes: threads, instances, batches on the loop, child processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import psutil
import pytest

import penstock as ps
from penstock.core.policy.scale import Elastic
from penstock.errors import ConfigError
from penstock.policy import Scale
from penstock.runtime import place, replicas

from . import hogs


class Model:
    """An instance knows its number; the fifth cannot be made."""

    made = 0
    closed: list[int]

    def __init__(self) -> None:
        Model.made += 1
        self.number = Model.made
        if self.number == 5:
            raise ValueError("no more")

    def __call__(self, x: int) -> int:
        return self.number

    def close(self) -> None:
        Model.closed.append(self.number)


def fresh() -> None:
    Model.made, Model.closed = 0, []


async def settled(runtime: ps.Runtime, service: Any, count: int) -> None:
    """Until so many replicas are left, and all others have been put away."""
    station = runtime.bindings[service].station
    while station.servers != count or any(r.leaving and not r.vacant for r in station.replicas):
        await asyncio.sleep(0)


def threads(name: str) -> int:
    """How many do not end; one that has told its executor so may still have a few steps before it."""
    found = [thread for thread in threading.enumerate() if thread.name.startswith(f"penstock-{name}-")]
    for thread in found:
        thread.join(10.0)
    return sum(thread.is_alive() for thread in found)


def test_threads_of_a_function_come_and_go() -> None:
    entered = threading.Semaphore(0)
    leave = threading.Event()

    def wait(x: int) -> int:
        entered.release()
        leave.wait(10.0)
        return x

    service = ps.service(wait, on=ps.Thread(1))

    async def main() -> None:
        async with ps.Runtime(service) as runtime:
            calls = [service(n).start() for n in range(4)]
            await runtime.scale(service, 3)
            for _ in range(3):
                await asyncio.to_thread(entered.acquire)
            assert [call.status for call in calls].count("running") == 3
            await runtime.scale(service, 1)
            assert runtime.snapshot()["wait"].replicas_up == 1
            assert [call.status for call in calls].count("running") == 3, "what runs may finish"
            leave.set()
            assert await asyncio.gather(*calls) == [0, 1, 2, 3]
            await settled(runtime, service, 1)
            assert await service(7) == 7
            await runtime.scale(service, 2)
            assert await asyncio.gather(service(1), service(2)) == [1, 2]

    asyncio.run(main())
    assert threads("wait") == 0


def test_instances_come_and_go_and_are_closed() -> None:
    fresh()
    service = ps.service(Model, on=ps.Thread(1))

    async def main() -> None:
        async with ps.Runtime(service) as runtime:
            assert await service(0) == 1
            await runtime.scale(service, 3)
            assert Model.made == 3
            await runtime.scale(service, 1)
            await settled(runtime, service, 1)
            assert len(Model.closed) == 2
            left = {1, 2, 3} - set(Model.closed)
            assert {await service(n) for n in range(5)} == left

    asyncio.run(main())
    assert sorted(Model.closed) == [1, 2, 3]


def test_a_replica_that_does_not_load_is_told_and_leaves_no_trace() -> None:
    fresh()
    service = ps.service(Model, on=ps.Thread(4))

    async def main() -> None:
        async with ps.Runtime(service) as runtime:
            with pytest.raises(ValueError, match="no more"):
                await runtime.scale(service, 5)
            await settled(runtime, service, 4)
            assert runtime.snapshot()["model"].replicas_up == 4
            await runtime.scale(service, 5)
            assert runtime.snapshot()["model"].replicas_up == 5

    asyncio.run(main())


def test_all_are_replaced_one_by_one_while_calls_are_served() -> None:
    fresh()
    Model.made = 10
    service = ps.service(Model, on=ps.Thread(2))

    async def main() -> None:
        async with ps.Runtime(service) as runtime:
            seen: list[int] = []
            stop = False

            async def ask() -> None:
                while not stop:
                    seen.append(await service(0))

            asking = asyncio.ensure_future(ask())
            await runtime.roll(service)
            stop = True
            await asking
            assert sorted(Model.closed) == [11, 12]
            assert {await service(n) for n in range(4)} <= {13, 14}
            assert seen and runtime.snapshot()["model"].replicas_up == 2

    asyncio.run(main())


def test_batches_on_the_loop() -> None:
    running = peak = 0

    async def batch(xs: list[int]) -> list[int]:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1
        return xs

    service = ps.service(batch, batch=ps.Batch(max_size=1, max_wait=0.0), on=ps.Inline(1))

    async def main() -> None:
        nonlocal peak
        async with ps.Runtime(service) as runtime:
            for count in (1, 3, 2):
                await runtime.scale(service, count)
                peak = 0
                assert await asyncio.gather(*(service(n) for n in range(12))) == list(range(12))
                assert peak == count

    asyncio.run(main())


def test_child_processes() -> None:
    async def main() -> None:
        async with ps.Runtime(hogs.pid) as runtime:
            first = await hogs.pid()
            await runtime.scale(hogs.pid, 2)
            assert len(set(await asyncio.gather(*(hogs.pid(n) for n in range(20))))) == 2
            await runtime.roll(hogs.pid)
            assert not psutil.pid_exists(first)
            await runtime.scale(hogs.pid, 1)
            await settled(runtime, hogs.pid, 1)
            assert len({await hogs.pid(n) for n in range(5)}) == 1
            assert len(runtime.bindings[hogs.pid].executor.processes) == 1  # type: ignore[union-attr]

    asyncio.run(main())


def test_what_has_no_replicas_says_so() -> None:
    @ps.service
    async def plain(x: int) -> int:
        return x

    @ps.service(on=ps.Thread(2))
    def some(x: int) -> int:
        return x

    async def main() -> None:
        async with ps.Runtime(plain, some) as runtime:
            with pytest.raises(ConfigError, match="plain runs on the loop"):
                await runtime.scale(plain, 2)
            wrong: tuple[Any, ...] = (0, "3", 1.5, True)
            for count in wrong:
                with pytest.raises(ConfigError, match="at least 1"):
                    await runtime.scale(some, count)

    asyncio.run(main())


def test_the_rule_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a standing queue threads are added up to the most, and without work they go again."""
    monkeypatch.setattr(replicas, "_EVERY", 0.001)

    def work(x: int) -> int:
        return x

    policy = Scale(1, 4, delay=0.0, up_after=0.002, down_after=0.02)
    service = ps.service(work, on=ps.Thread(replicas=policy))

    async def main() -> None:
        async with ps.Runtime(service) as runtime:
            station = runtime.bindings[service].station
            assert station.servers == 1

            async def ask() -> None:
                while station.servers < 4:
                    await service(0)

            await asyncio.gather(*(ask() for _ in range(64)))
            await settled(runtime, service, 1)
            assert await service(3) == 3

    asyncio.run(main())


def test_each_stream_of_a_plain_generator_has_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eighty streams, each of which waits for all others, and then none: there are as many threads as are needed."""
    monkeypatch.setattr(replicas, "_EVERY", 0.001)
    monkeypatch.setattr(place, "Elastic", partial(Elastic, keep=0.02))
    together = threading.Barrier(80, timeout=30.0)

    def meet(x: int) -> Iterator[int]:
        yield x
        together.wait()
        yield -x

    service = ps.service(meet)

    async def main() -> None:
        async with ps.Runtime(service) as runtime:
            station = runtime.bindings[service].station
            least = station.servers

            async def read(x: int) -> list[int]:
                return [item async for item in service(x)]

            assert await asyncio.gather(*(read(x) for x in range(80))) == [[x, -x] for x in range(80)]
            await settled(runtime, service, least)
            together.reset()
            assert await asyncio.gather(*(read(x) for x in range(80))) == [[x, -x] for x in range(80)]

    asyncio.run(main())


def test_a_stream_waits_where_no_thread_can_be_begun(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The machine refuses more threads: that is said, and the streams take turns."""
    begin = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if threads_left():
            begin(thread)
        else:
            raise RuntimeError("can't start new thread")

    left = iter(range(4))

    def threads_left() -> bool:
        return next(left, None) is not None

    def count(x: int) -> Iterator[int]:
        yield from range(x)

    service = ps.service(count)

    async def main() -> None:
        async with ps.Runtime(service, profile="edge") as runtime:
            assert runtime.bindings[service].station.servers < 4
            monkeypatch.setattr(threading.Thread, "start", start)

            async def read(x: int) -> list[int]:
                return [item async for item in service(x)]

            assert await asyncio.gather(*(read(x % 5) for x in range(40))) == [list(range(x % 5)) for x in range(40)]

    asyncio.run(main())
    assert "could not be scaled" in caplog.text
