"""Every public name, used as a user would."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

import penstock as ps
from penstock.errors import (
    ConfigError,
    DeadlineExceeded,
    DeadlockRefused,
    QueueFull,
    Refused,
    ShuttingDown,
    Superseded,
    WorkerLost,
)


def run(*services: Any, **options: Any) -> Callable[[Callable[[ps.Runtime], Awaitable[None]]], None]:
    """Run an async test body in a runtime with these services."""

    def with_body(body: Callable[[ps.Runtime], Awaitable[None]]) -> None:
        async def main() -> None:
            async with ps.Runtime(*services, **options) as runtime:
                await asyncio.wait_for(body(runtime), 30)
                for _ in range(5000):  # a thread may still have to come back
                    if not runtime.busy():
                        return
                    await asyncio.sleep(0.001)
                raise AssertionError(runtime.snapshot())

        asyncio.run(main())

    return with_body


@ps.service
async def hello(name: str) -> str:
    return f"Hello, {name}!"


@ps.service
def double(x: int) -> int:
    return 2 * x


@ps.service(batch=ps.Batch(max_size=4, max_wait=0.005))
def halves(xs: list[int]) -> list[float | Exception]:
    return [ValueError("odd") if x % 2 else x / 2 for x in xs]


@ps.service
async def count(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


@ps.service
def tcount(n: int) -> Iterator[int]:
    yield from range(n)


def test_call_kinds() -> None:
    @run(hello, double, halves, count, tcount)
    async def body(runtime: ps.Runtime) -> None:
        assert await hello("Ada") == "Hello, Ada!"
        assert await double(21) == 42
        assert await double(x=4) == 8
        answers = await asyncio.gather(*(halves(x) for x in range(4)), return_exceptions=True)
        assert answers[0] == 0.0
        assert isinstance(answers[1], ValueError)
        assert [i async for i in count(5)] == list(range(5))
        assert [i async for i in tcount(300)] == list(range(300))
        assert [x async for x in double(3)] == [6]


def test_status_timing_and_ids() -> None:
    @run(hello, double)
    async def body(runtime: ps.Runtime) -> None:
        call = double(3)
        assert call.status == "pending"
        assert await call.start() == 6
        assert await call == 6
        assert call.status == "done"
        assert call.timing.total == pytest.approx(sum((call.timing.queued, call.timing.batched, call.timing.ran)))
        other = double(1)
        assert call.id != other.id
        assert await other == 2
        unstarted = hello("x")
        unstarted.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unstarted


def test_callbacks_do_not_disturb_each_other() -> None:
    @ps.service
    async def fails() -> None:
        raise ValueError("no")

    @run(double, fails)
    async def body(runtime: ps.Runtime) -> None:
        got: list[Any] = []
        call = double(1).on_success(lambda _: 1 / 0).on_success(got.append).on_error(got.append)
        assert await call == 2
        bad = fails().on_success(got.append).on_error(lambda e: got.append(str(e)))
        with pytest.raises(ValueError, match="no"):
            await bad
        await asyncio.sleep(0)
        assert got == [2, "no"]


def test_join_within_and_map() -> None:
    @ps.service
    async def never() -> None:
        await asyncio.Event().wait()

    @ps.service
    async def fails() -> None:
        raise ValueError("no")

    @run(hello, double, never, fails)
    async def body(runtime: ps.Runtime) -> None:
        assert await ps.join(hello("a"), double(2)) == ("Hello, a!", 4)
        with pytest.raises(ValueError, match="no"):
            await ps.join(never(), fails())
        with pytest.raises(DeadlineExceeded):
            await ps.within(0.01, never)
        assert [x async for x in ps.map(double, range(50))] == [2 * i for i in range(50)]
        assert sorted([x async for x in ps.map(double, range(50), ordered=False)]) == [2 * i for i in range(50)]
        assert [x async for x in ps.map(double, ps.map(double, range(9)))] == [4 * i for i in range(9)]
        async for x in ps.map(double, iter(range(10**9))):
            if x == 100:
                break
        results = [r async for r in ps.map(halves_or_raise, range(3), return_exceptions=True)]
        assert isinstance(results[1], ValueError)


async def halves_or_raise(x: int) -> float:
    if x % 2:
        raise ValueError("odd")
    return x / 2


def test_budget_is_inherited_and_only_tightened() -> None:
    seen: list[ps.Budget] = []

    @ps.service
    async def inner() -> None:
        from penstock.context import current_budget

        seen.append(current_budget())

    @ps.service(within=100.0)
    async def outer() -> None:
        with ps.budget(within=1000.0):
            await inner()
        with ps.budget(within=1.0):
            await inner()
        with pytest.raises(ConfigError), ps.budget(tenant="another"):
            pass

    @run(outer, inner)
    async def body(runtime: ps.Runtime) -> None:
        with ps.budget(within=50.0, priority=3, tenant="acme"):
            await outer()
        now = runtime.clock()
        assert [(b.priority, b.tenant) for b in seen] == [(3, "acme")] * 2
        assert seen[0].deadline is not None
        assert seen[1].deadline is not None
        assert now + 40 < seen[0].deadline <= now + 50
        assert seen[1].deadline <= now + 1


def test_deadlines_cancel_bodies() -> None:
    ended: list[str] = []

    @ps.service
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    @run(slow)
    async def body(runtime: ps.Runtime) -> None:
        with ps.budget(within=0.02), pytest.raises(DeadlineExceeded):
            await slow()
        task = asyncio.ensure_future(slow().start())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["cancelled", "cancelled"]


def test_queue_bound_and_latest() -> None:
    gate = threading.Event()

    @ps.service(on=ps.Thread(1), admit=(ps.Queue(items=1), ps.Latest(key=lambda x: "same")))
    def gated(x: int) -> int:
        gate.wait(10)
        return x

    @ps.service(on=ps.Thread(1), admit=ps.Queue(items=1))
    def full(x: int) -> int:
        gate.wait(10)
        return x

    @run(gated, full)
    async def body(runtime: ps.Runtime) -> None:
        first, second, third = gated(1).start(), gated(2).start(), gated(3).start()
        with pytest.raises(Superseded):
            await second
        a, b = full(1).start(), full(2).start()
        with pytest.raises(QueueFull) as caught:
            await full(3)
        assert caught.value.retry_after is not None
        gate.set()
        assert await ps.join(first, third, a, b) == (1, 3, 1, 2)


@pytest.mark.parametrize(
    "order", [ps.Fifo(), ps.EarliestDeadline(), ps.FairShare(weights={"a": 2.0}), ps.Priority(age=5.0, then=ps.FairShare())]
)
def test_orders_serve_everything(order: Any) -> None:
    batched = ps.service(double.body.target, name="ordered", on=ps.Thread(1), order=order)

    @run(batched)
    async def body(runtime: ps.Runtime) -> None:
        calls = []
        for i in range(30):
            with ps.budget(tenant="ab"[i % 2], priority=i % 3, within=20.0):
                calls.append(batched(i).start())
        assert [await call for call in calls] == [2 * i for i in range(30)]


def test_limits() -> None:
    running = peak = 0

    @ps.service(limit=(ps.Fixed(2), ps.AIMD(), ps.Rate(per_second=10_000.0, burst=10)))
    async def limited() -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1

    @run(limited)
    async def body(runtime: ps.Runtime) -> None:
        await asyncio.gather(*(limited() for _ in range(50)))
        assert peak == 2


def test_pools_are_shared_between_services() -> None:
    device = ps.Pool("device", 1)
    running = peak = 0

    async def work() -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1

    see, read = ps.service(work, name="see", needs={device: 1}), ps.service(work, name="read", needs={device: 1})

    @run(see, read)
    async def body(runtime: ps.Runtime) -> None:
        await asyncio.gather(*(s() for s in (see, read) * 10))
        assert peak == 1


def test_retry_of_what_is_safe() -> None:
    tries = 0

    @ps.service(safe=True, retry=ps.Retry(attempts=3, base=0.001, on=(WorkerLost,)))
    async def flaky() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise WorkerLost("again")
        return tries

    @run(flaky)
    async def body(runtime: ps.Runtime) -> None:
        assert await flaky() == 3


def test_nested_calls_that_could_deadlock_are_refused() -> None:
    @ps.service(on=ps.Thread(1))
    def recursive(n: int) -> int:
        return 0 if n == 0 else int(recursive.submit(n - 1).result())

    @run(recursive)
    async def body(runtime: ps.Runtime) -> None:
        assert await recursive(0) == 0
        with pytest.raises(DeadlockRefused, match=r"recursive's replicas -> recursive's replicas"):
            await recursive(1)


def test_a_longer_circle_is_told_from_end_to_end() -> None:
    @ps.service(on=ps.Thread(1))
    def first(n: int) -> int:
        return int(second.submit(n).result())

    @ps.service(on=ps.Thread(1))
    def second(n: int) -> int:
        return int(third.submit(n).result())

    @ps.service(on=ps.Thread(1))
    def third(n: int) -> int:
        return 0 if n == 0 else int(first.submit(n - 1).result())

    @run(first, second, third)
    async def body(runtime: ps.Runtime) -> None:
        with pytest.raises(DeadlockRefused) as caught:
            await first(1)
        chain = "first's replicas -> second's replicas -> third's replicas -> first's replicas; make this call when theirs have ended"
        assert chain in str(caught.value)


def test_from_plain_threads() -> None:
    with ps.Runtime(ps.App(hello, double, halves)):
        assert hello.submit("Ada").result(10) == "Hello, Ada!"
        assert [f.result() for f in double.map(range(100), concurrency=7)] == [2 * i for i in range(100)]
        done: list[int] = []
        future = double.submit(4)
        future.add_done_callback(lambda f: done.append(f.result()))
        assert future.result(10) == 8
        assert isinstance(halves.submit(3).exception(10), ValueError)
    with pytest.raises(ConfigError, match="no runtime is active"):
        double.submit(1)


def test_drain_finishes_what_is_in_flight_and_refuses_the_rest() -> None:
    gate = threading.Event()

    @ps.service(on=ps.Thread(1))
    def gated(x: int) -> int:
        gate.wait(10)
        return x

    async def main() -> None:
        runtime = ps.Runtime(gated)
        async with runtime:
            running, queued = gated(1).start(), gated(2).start()
            stopping = asyncio.ensure_future(runtime.stop(10))
            await asyncio.sleep(0)
            with pytest.raises(ShuttingDown):
                await gated(3)
            gate.set()
            assert await ps.join(running, queued) == (1, 2)
            await stopping

    asyncio.run(main())


def test_what_does_not_end_in_time_is_ended() -> None:
    async def main() -> None:
        @ps.service
        async def never() -> None:
            await asyncio.Event().wait()

        runtime = ps.Runtime(never)
        async with runtime:
            call = never().start()
            await asyncio.sleep(0)
            await runtime.stop(0.01)
            with pytest.raises(ShuttingDown):
                await call

    asyncio.run(main())


def test_a_dropped_call_warns() -> None:
    @run(hello)
    async def body(runtime: ps.Runtime) -> None:
        with pytest.warns(RuntimeWarning, match="never awaited"):
            hello("x")


def test_wrong_declarations_say_what_to_do() -> None:
    async def afunc(x: int) -> int:
        return x

    def func(x: int) -> int:
        return x

    for make, message in (
        (lambda: ps.service(func, on=ps.Inline()), "would block the loop"),
        (lambda: ps.service(afunc, on=ps.Thread()), "is async"),
        (lambda: ps.service(func, on=ps.Process()), "module level"),
        (lambda: ps.service(func, retry=ps.Retry()), "safe=True"),
        (lambda: ps.service(object), "no __call__"),
        (lambda: ps.Batch(max_cost=5.0), "without cost="),
        (lambda: ps.Rate(per_second=1.0, burst=2, min_gap=2.0), "burst can never happen"),
        (lambda: ps.App(func), "takes services"),
        (lambda: ps.Pool("p", 0), "greater than 0"),
        (lambda: ps.App(max_body=-1), "max_body"),
        (lambda: ps.App(max_body="16M"), "max_body"),
        (lambda: ps.App(cors=[3]), "a list of origins"),
        (lambda: ps.App(cors=3), "a list of origins"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def test_service_and_call_types() -> None:
    assert isinstance(hello, ps.Service)
    assert str(halves.signature).startswith("(x: int)")
    assert ps.Call.__doc__
    assert issubclass(QueueFull, Refused)
