"""`join` and `within`: who is cancelled, when, and what the caller hears. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

import penstock as ps
from penstock.errors import ConfigError, DeadlineExceeded
from penstock.sim.loop import VirtualLoop

ENDS: list[tuple[str, float]] = []  # how bodies ended, and when


def now() -> float:
    return asyncio.get_running_loop().time()


@ps.service
async def lasts(seconds: float) -> float:
    end = "cancelled"
    try:
        await asyncio.sleep(seconds)
        end = "answered"
        return seconds
    finally:
        ENDS.append((end, now()))


@ps.service
async def fails(seconds: float) -> float:
    await asyncio.sleep(seconds)
    raise ValueError(seconds)


@ps.service
async def gives_up() -> None:
    raise TimeoutError("the database is slow")


@ps.service
async def remaining() -> float:
    from penstock.context import current_budget

    deadline = current_budget().deadline
    return float("inf") if deadline is None else deadline - now()


@ps.service
async def streams() -> AsyncIterator[int]:
    yield 1


def virtually(body: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    async def main() -> None:
        runtime = ps.Runtime(lasts, fails, gives_up, streams, remaining, clock=loop.time, watch=False)
        async with runtime:
            await body()
            await asyncio.sleep(0)  # the last step of what was cancelled before its first
            assert not runtime.busy()
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    ENDS.clear()
    loop = VirtualLoop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_join_answers_in_order_after_the_longest() -> None:
    async def body() -> None:
        async def plain() -> str:
            return "any awaitable"

        ready = asyncio.get_running_loop().create_future()
        ready.set_result("a future")
        assert await ps.join(lasts(3.0), lasts(1.0), plain(), ready) == (3.0, 1.0, "any awaitable", "a future")
        assert now() == 3.0
        assert await ps.join() == ()

    virtually(body)


def test_the_first_failure_in_time_ends_a_join_and_cancels_the_others() -> None:
    async def body() -> None:
        with pytest.raises(ValueError, match=r"2\.0"):
            await ps.join(lasts(9.0), fails(5.0), fails(2.0), lasts(1.0))
        assert now() == 2.0
        assert ENDS == [("answered", 1.0), ("cancelled", 2.0)]

    virtually(body)


def test_a_joiner_that_is_cancelled_cancels_all_and_stays_cancelled() -> None:
    async def body() -> None:
        joiner = asyncio.ensure_future(ps.join(lasts(9.0), fails(5.0), lasts(8.0)))
        await asyncio.sleep(1.0)
        joiner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joiner
        assert ENDS == [("cancelled", 1.0)] * 2

    virtually(body)


@pytest.mark.filterwarnings("ignore:a call of streams was never awaited")
def test_a_join_that_cannot_begin_leaves_nothing_running() -> None:
    async def body() -> None:
        with pytest.raises(ConfigError, match="streams"):
            await ps.join(lasts(9.0), streams())
        assert now() == 0.0

    virtually(body)


@pytest.mark.parametrize("make", [lambda: lasts(9.0), lambda: ps.join(lasts(9.0), lasts(8.0))])
def test_within_ends_what_takes_longer(make: Callable[[], Any]) -> None:
    async def body() -> None:
        with pytest.raises(DeadlineExceeded):
            await ps.within(2.0, make)
        assert now() == pytest.approx(2.0, abs=0.002)
        assert {end for end, _ in ENDS} == {"cancelled"}
        before = now()
        with pytest.raises(DeadlineExceeded, match="not done within 3 s"):
            await ps.within(3.0, lasts(9.0))  # a call that was made before
        assert now() - before == pytest.approx(3.0, abs=0.002)
        assert await ps.within(2.0, lambda: lasts(1.0)) == 1.0

    virtually(body)


def test_within_gives_its_deadline_to_the_calls_that_are_made_in_it() -> None:
    async def body() -> None:
        assert await remaining() == float("inf")
        assert await ps.within(2.0, remaining) == 2.0
        assert await ps.within(2.0, lambda: ps.within(9.0, remaining)) == 2.0
        assert await ps.within(2.0, lambda: ps.within(1.0, remaining)) == 1.0
        with ps.budget(within=0.5):
            assert await ps.within(2.0, remaining) == 0.5

    virtually(body)


def test_within_takes_nobodys_failure_for_its_own() -> None:
    async def body() -> None:
        with pytest.raises(TimeoutError, match="the database is slow") as caught:
            await ps.within(2.0, gives_up)
        assert not isinstance(caught.value, DeadlineExceeded)
        with pytest.raises(ValueError, match=r"1\.0"):
            await ps.within(2.0, lambda: fails(1.0))
        waiter = asyncio.ensure_future(ps.within(9.0, lambda: lasts(8.0)))
        await asyncio.sleep(1.0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    virtually(body)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_within_no_time_is_a_mistake(seconds: float) -> None:
    async def body() -> None:
        with pytest.raises(ConfigError, match="greater than 0"):
            await ps.within(seconds, remaining)

    virtually(body)
