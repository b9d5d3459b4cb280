"""Threads: one result per request whatever a body does, bounded streams, prompt ends."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from penstock.errors import BadResult, ConfigError, ServiceError, ServiceFailed
from penstock.executors.base import Body
from penstock.executors.thread import ThreadExecutor

from .fake import Host, batch, work


@asynccontextmanager
async def threads(
    target: Callable[..., Any], replicas: int = 1, *, buffer: int = 64, args: tuple[Any, ...] = (), **options: Any
) -> AsyncIterator[Host]:
    host = Host()
    body = Body("svc", target, args, **options)
    host.executor = ThreadExecutor(body, host, asyncio.get_running_loop(), replicas, buffer=buffer)
    await host.executor.start()
    try:
        yield host
    finally:
        await host.executor.stop(5.0)
    assert not host.broken
    assert_no_threads()


def assert_no_threads() -> None:
    """The last thing a thread does is to say that it ends, so it may be there for an instant more."""
    for thread in threading.enumerate():
        if thread.name.startswith("penstock-svc"):
            thread.join(5.0)
            assert not thread.is_alive()


def test_result_error_and_thread_name() -> None:
    def body(x: int) -> Any:
        return threading.current_thread().name if x else 1 / x

    async def main() -> None:
        async with threads(body) as host:
            assert host.up == [0]
            assert await host.call(1) == "penstock-svc-0"
            error = await host.call(0)
            assert isinstance(error, ZeroDivisionError)
            assert error.__traceback__ is not None
            assert error.__traceback__.tb_frame.f_code.co_name == "body"

    asyncio.run(main())


@pytest.mark.parametrize("thrown", [SystemExit(3), KeyboardInterrupt(), StopIteration(1), GeneratorExit()])
def test_what_a_future_or_a_thread_cannot_survive_is_contained(thrown: BaseException) -> None:
    def body(fail: bool) -> str:
        if fail:
            raise thrown
        return "alive"

    async def main() -> None:
        async with threads(body) as host:
            error = await host.call(True)
            assert isinstance(error, ServiceError)
            assert error.__cause__ is thrown
            assert isinstance(error, ServiceFailed) == isinstance(thrown, StopIteration)
            assert await host.call(False) == "alive"

    asyncio.run(main())


def test_each_request_runs_in_its_context() -> None:
    variable = contextvars.ContextVar("variable", default=0)

    async def main() -> None:
        async with threads(lambda: variable.get()) as host:
            unit = work()
            variable.set(7)
            unit.requests[0].item.context = contextvars.copy_context()
            assert await host.outcome(host.run(unit)) == 7
            assert await host.call() == 0

    asyncio.run(main())


def test_batches() -> None:
    def body(xs: list[Any]) -> Any:
        if "raise" in xs:
            raise ValueError("all")
        if "short" in xs:
            return xs[1:]
        if "str" in xs:
            return "ab"
        return [ValueError("one") if x is None else x * 2 for x in xs]

    async def main() -> None:
        async with threads(body, batched=True) as host:
            results = await host.outcome(host.run(batch(1, None, 3)))
            assert results[0] == 2
            assert isinstance(results[1], ValueError)
            assert results[2] == 6
            assert [str(e) for e in await host.outcome(host.run(batch("raise", 1)))] == ["all", "all"]
            for kind, got in (("short", "2"), ("str", "a str")):
                errors = await host.outcome(host.run(batch(kind, 2, 3)))
                assert all(isinstance(e, BadResult) for e in errors)
                assert f"svc got a batch of 3 and returned {got}" in str(errors[0])

    asyncio.run(main())


def test_classes_are_built_and_closed_in_their_own_threads() -> None:
    seen: list[tuple[str, str]] = []

    class Model:
        def __init__(self, scale: int) -> None:
            self.scale = scale
            seen.append(("init", threading.current_thread().name))

        def __call__(self, x: int) -> tuple[int, str]:
            return self.scale * x, threading.current_thread().name

        def close(self) -> None:
            seen.append(("close", threading.current_thread().name))

    async def main() -> None:
        async with threads(Model, 2, args=(10,), is_class=True) as host:
            assert await host.call(1, replica=1) == (10, "penstock-svc-1")
            assert await host.call(2, replica=0) == (20, "penstock-svc-0")

    asyncio.run(main())
    assert sorted(seen) == sorted((what, f"penstock-svc-{i}") for what in ("init", "close") for i in (0, 1))


def test_start_raises_what_a_constructor_raised_and_leaves_nothing() -> None:
    class Broken:
        def __init__(self) -> None:
            if threading.current_thread().name.endswith("1"):
                raise OSError("no weights")

        def __call__(self) -> None: ...

    async def main() -> None:
        with pytest.raises(OSError, match="no weights"):
            async with threads(Broken, 2, is_class=True):
                pass

    asyncio.run(main())
    assert_no_threads()


def test_wrong_declarations_are_refused() -> None:
    async def body() -> None: ...

    async def main() -> None:
        with pytest.raises(ConfigError, match="async"):
            async with threads(body, is_async=True):
                pass
        with pytest.raises(ConfigError, match="replicas=0"):
            async with threads(print, 0):
                pass

    asyncio.run(main())


def test_a_staged_work_follows_at_once_and_can_be_taken_back() -> None:
    gate = threading.Semaphore(0)
    order: list[str] = []

    def body(x: str) -> str:
        gate.acquire()
        order.append(x)
        return x

    async def main() -> None:
        async with threads(body) as host:
            first, second = host.run(work("first")), host.stage(work("second"))
            assert host.revoke(second)
            assert not host.revoke(second)
            third = host.stage(work("third"))
            gate.release(2)
            assert await host.outcome(first) == "first"
            assert await host.outcome(third) == "third"
            assert not host.revoke(third)
            assert order == ["first", "third"]

    asyncio.run(main())


def test_a_work_staged_as_its_predecessor_ends_is_not_forgotten() -> None:
    async def main() -> None:
        async with threads(lambda: threading.get_ident()) as host:
            for turn in range(300):
                first = host.run(work())
                while turn % 2 and not host.executor._inbox:  # the thread has ended; the loop does not know yet
                    pass
                second = host.stage(work())
                await host.outcome(first)
                await host.outcome(second)

    asyncio.run(main())


def test_stop_returns_what_was_only_staged() -> None:
    gate = threading.Semaphore(0)

    async def main() -> None:
        async with threads(lambda: gate.acquire()) as host:
            running, staged = host.run(work()), host.stage(work())
            stopping = asyncio.ensure_future(host.executor.stop(5.0))
            await host.executor._settled(0.0)
            assert staged.state == "returned"
            gate.release()
            await stopping
            assert running.state == "finished"

    asyncio.run(main())


def test_stop_abandons_a_thread_that_does_not_return() -> None:
    gate = threading.Semaphore(0)

    async def main() -> None:
        async with threads(lambda: gate.acquire()) as host:
            running = host.run(work())
            await host.executor.stop(0.0)
            assert running.state == "running"
            gate.release()
            await host.outcome(running)

    asyncio.run(main())


def test_a_stream_never_runs_further_ahead_than_its_buffer() -> None:
    made = []

    def count(n: int) -> Iterator[int]:
        for i in range(n):
            made.append(i)
            yield i

    async def main() -> None:
        async with threads(count, streams=True, buffer=8) as host:
            host.acknowledge = False
            unit = host.run(work(100))
            taken = 0
            while unit.state == "running":
                await asyncio.sleep(0)
                assert len(made) - taken <= 8
                step = min(3, len(unit.items) - taken)
                taken += step
                host.executor.resume(unit, step)
            assert unit.items == list(range(100))
            assert unit.results == [None]

    asyncio.run(main())


def test_stream_items_come_in_groups() -> None:
    async def main() -> None:
        async with threads(lambda n: iter_range(n), streams=True) as host:
            groups = []
            produced = host.produced
            host.produced = lambda w, items: (groups.append(len(items)), produced(w, items))  # type: ignore[func-returns-value,method-assign]
            assert await host.call(10_000) is None
            assert sum(groups) == 10_000
            assert len(groups) < 5_000

    def iter_range(n: int) -> Iterator[int]:
        yield from range(n)

    asyncio.run(main())


def test_cancel_closes_a_stream_that_waits_for_its_reader() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    async def main() -> None:
        async with threads(endless, streams=True, buffer=4) as host:
            host.acknowledge = False
            unit = host.run(work())
            await asyncio.wait_for(unit.came.wait(), 5)
            host.executor.cancel(unit)
            assert isinstance(await host.outcome(unit), asyncio.CancelledError)
            assert closed.is_set()
            unit = host.run(work())
            host.executor.cancel(unit)  # perhaps before the thread began
            assert isinstance(await host.outcome(unit), asyncio.CancelledError)
            assert not host.executor._shared.streams

    asyncio.run(main())


def test_an_error_in_a_stream_comes_after_its_items() -> None:
    def body() -> Iterator[int]:
        yield 1
        raise ValueError("late")

    async def main() -> None:
        async with threads(body, streams=True) as host:
            unit = host.run(work())
            assert str(await host.outcome(unit)) == "late"
            assert unit.items == [1]

    asyncio.run(main())


def test_cancel_sets_the_token_of_a_running_body() -> None:
    token = threading.Event()

    async def main() -> None:
        async with threads(lambda: token.wait(20)) as host:
            unit = work()
            unit.requests[0].item.token = token
            host.run(unit)
            host.executor.cancel(unit)
            assert await host.outcome(unit) is True

    asyncio.run(main())


def test_an_idle_thread_keeps_nothing_alive() -> None:
    class Big:
        pass

    async def main() -> None:
        async with threads(lambda big: big) as host:
            big: Any = Big()
            gone = weakref.ref(big)
            unit: Any = work(big)
            await host.outcome(host.run(unit))
            await host.call(1)
            del big, unit
            gc.collect()
            assert gone() is None

    asyncio.run(main())


def test_an_unexpectedly_long_unit_does_not_hold_up_the_others() -> None:
    """Short works are served by one awake thread; the loop must notice when that stops being true."""
    gate = threading.Event()

    def body(block: bool) -> bool:
        return gate.wait(30) if block else False

    async def main() -> None:
        async with threads(body, 4) as host:
            for _ in range(300):
                await host.call(False)
            assert host.executor._pools[0].short
            quick = host.run(work(False, replica=1))
            slow = host.run(work(True, replica=0))
            others = [host.run(work(False, replica=i)) for i in (2, 3)]
            for unit in (quick, *others):
                assert await host.outcome(unit, within=5) is False
            assert slow.state == "running"
            gate.set()
            assert await host.outcome(slow) is True

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="no descriptors are used elsewhere")
def test_descriptors_are_given_back() -> None:
    async def main() -> None:
        async with threads(lambda x: x, 4) as host:
            assert await host.call(7) == 7

    def open_now() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    asyncio.run(main())
    before = open_now()
    for _ in range(5):
        asyncio.run(main())
    assert open_now() <= before
