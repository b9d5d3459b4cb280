"""A call wherever asyncio takes a future: the same outcomes as a task would have, and one end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

import penstock as ps


@ps.service
async def echo(x: int) -> int:
    await asyncio.sleep(0)
    return x


@ps.service
async def forever(started: list[int]) -> None:
    started.append(1)
    try:
        await asyncio.Event().wait()
    finally:
        started.append(-1)


@ps.service
async def fails(x: int) -> int:
    raise ValueError(x)


@ps.service(batch=ps.Batch(max_size=4, max_wait=0.0))
async def doubled(xs: list[int]) -> list[Any]:
    return [ValueError(x) if x < 0 else 2 * x for x in xs]


@ps.service(on=ps.Thread(2))
def threaded(x: int) -> int:
    return x + 1


said: ContextVar[int] = ContextVar("said", default=-1)

EACH = pytest.mark.parametrize(
    ("service", "answer"), [(echo, lambda x: x), (doubled, lambda x: 2 * x), (threaded, lambda x: x + 1)]
)


def run(body: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        async with ps.Runtime(echo, forever, fails, doubled, threaded, look) as runtime:
            result = await asyncio.wait_for(body(), 10)
            for _ in range(9):  # turns of the loop, in which what was cancelled comes to its end
                await asyncio.sleep(0)
            assert not runtime.busy()
            return result

    return asyncio.run(main())


@EACH
def test_gather_wait_and_as_completed_take_calls(service: Any, answer: Callable[[int], int]) -> None:
    async def body() -> None:
        calls = [service(x) for x in range(9)]
        assert await asyncio.gather(*calls) == [answer(x) for x in range(9)]
        assert await calls[3] == answer(3)  # again
        assert all(call.status == "done" for call in calls)
        done, pending = await asyncio.wait([service(x) for x in range(5)])
        assert not pending
        assert sorted(call.result() for call in done) == [answer(x) for x in range(5)]
        assert sorted([await each for each in asyncio.as_completed([service(x) for x in range(5)])]) == [
            answer(x) for x in range(5)
        ]
        assert await asyncio.wait_for(service(7), 5) == answer(7)
        assert await asyncio.shield(service(8)) == answer(8)

    run(body)


@ps.service
async def look(x: int) -> tuple[int, int]:
    """What was said where it was started, and how many tasks there are."""
    return said.get(), len(asyncio.all_tasks())


def test_of_very_many_the_tasks_are_made_a_few_hundred_at_a_time_in_order_and_each_in_its_own_context() -> None:
    async def body() -> None:
        calls, ended = [], []
        for n in range(5000):
            said.set(n)
            calls.append(look(n).start())
            calls[-1].add_done_callback(lambda _, n=n: ended.append(n))  # type: ignore[misc]
        assert [call.status for call in calls] == ["pending"] * 5000
        calls[3000].cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(found.pop(3000), asyncio.CancelledError)
        ended.remove(3000)
        order = [n for n in range(5000) if n != 3000]
        assert [context for context, _ in found] == ended == order
        assert max(tasks for _, tasks in found) < 1000
        assert (await look(1).start())[1] < 20  # and a lone one begins at once

    run(body)


def test_a_failure_in_gather_is_the_calls_own() -> None:
    async def body() -> None:
        assert [str(e) for e in await asyncio.gather(fails(1), doubled(-2), return_exceptions=True)] == ["1", "-2"]
        with pytest.raises(ValueError, match="3"):
            await asyncio.gather(echo(1), fails(3))

    run(body)


def test_cancelling_a_gather_stops_the_bodies() -> None:
    async def body() -> list[int]:
        seen: list[int] = []
        calls = [forever(seen) for _ in range(3)]
        group = asyncio.gather(*calls)
        while len(seen) < 3:
            await asyncio.sleep(0)
        group.cancel()
        with pytest.raises(asyncio.CancelledError):
            await group
        while len(seen) < 6:
            await asyncio.sleep(0)
        assert [call.status for call in calls] == ["cancelled"] * 3
        return seen

    assert sum(run(body)) == 0


def test_a_wait_for_that_runs_out_cancels_its_call() -> None:
    async def body() -> None:
        seen: list[int] = []
        call = forever(seen)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.001)
        assert call.status == "cancelled"
        assert sum(seen) == 0

    run(body)


@pytest.mark.parametrize("service", [echo, doubled])
def test_a_call_that_is_cancelled_before_its_first_step_never_runs(service: Any) -> None:
    async def body() -> None:
        lazy, begun = service(1), service(2).start()
        assert lazy.cancel()
        begun.cancel()
        for call in (lazy, begun):
            with pytest.raises(asyncio.CancelledError):
                await call
            assert call.status == "cancelled"
            assert not call.cancel()
        assert (await asyncio.gather(lazy.start(), return_exceptions=True))[0].__class__ is asyncio.CancelledError

    run(body)


def test_a_gather_on_another_loop_hands_its_calls_over() -> None:
    async def elsewhere() -> Any:
        return await asyncio.gather(*[echo(x) for x in range(4)], doubled(5), threaded(6))

    async def body() -> Any:
        return await asyncio.to_thread(lambda: asyncio.run(elsewhere()))

    assert run(body) == [0, 1, 2, 3, 10, 7]


def test_an_error_that_nobody_looked_at_is_reported() -> None:
    async def body() -> list[str]:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        call = fails(1).start()
        while call.status != "failed":
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        del call
        gc.collect()
        return told

    assert any("never retrieved" in message for message in run(body))


def test_a_call_that_is_only_made_warns() -> None:
    async def body() -> None:
        with pytest.warns(RuntimeWarning, match="never awaited"):
            echo(1)

    run(body)
