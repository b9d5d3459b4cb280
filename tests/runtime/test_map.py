"""`map`: order, bounds, failures and breaking off, alone and in chains."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock.context import current_budget
from penstock.errors import ConfigError
from penstock.policy import Scale
from penstock.sim.loop import VirtualLoop


def virtually(body: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        async with ps.Runtime(clock=asyncio.get_running_loop().time, watch=False):
            return await body()

    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


class Load:
    """An async function that counts how many of it run at once."""

    def __init__(self, seconds: Callable[[int], float], fails: frozenset[int] = frozenset()) -> None:
        self.seconds, self.fails = seconds, fails
        self.running = self.most = self.calls = 0

    async def __call__(self, x: int) -> int:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.seconds(x))
            if x in self.fails:
                raise ValueError(x)
            return x
        finally:
            self.running -= 1


async def arrive(n: int, gap: float) -> AsyncIterator[int]:
    for x in range(n):
        await asyncio.sleep(gap)
        yield x


async def collect(items: AsyncIterator[int], into: list[int]) -> None:
    async for x in items:
        into.append(x)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=3),
    st.sampled_from(["list", "async"]),
)
def test_chains_answer_everything_once_within_their_windows(
    seconds: list[int], stages: list[tuple[int, bool]], source: str
) -> None:
    n = len(seconds)
    loads = [Load(lambda x: seconds[x]) for _ in stages]

    async def body() -> list[int]:
        items: Any = range(n) if source == "list" else arrive(n, 0.5)
        for load, (window, ordered) in zip(loads, stages, strict=True):
            items = ps.map(load, items, concurrency=window, ordered=ordered)
        return [x async for x in items]

    found = virtually(body)
    assert sorted(found) == list(range(n))
    if all(ordered for _, ordered in stages):
        assert found == list(range(n))
    for load, (window, _) in zip(loads, stages, strict=True):
        assert load.most <= window
        assert load.running == 0


def test_two_stages_overlap() -> None:
    async def body() -> float:
        began = asyncio.get_running_loop().time()
        one, two = Load(lambda _: 1.0), Load(lambda _: 1.0)
        async for _ in ps.map(two, ps.map(one, range(10), concurrency=1), concurrency=1):
            pass
        return asyncio.get_running_loop().time() - began

    assert virtually(body) == pytest.approx(11.0)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_slow_reader_bounds_what_is_read(ordered: bool) -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for x in range(1000):
            read.append(x)
            yield x

    async def body() -> None:
        answers = ps.map(
            Load(lambda _: 0.1), ps.map(Load(lambda _: 0.1), source(), concurrency=3), concurrency=4, ordered=ordered
        )
        async for _ in answers:
            await asyncio.sleep(100)
            assert len(read) <= 9
            if len(read) == 9:
                break

    virtually(body)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_failure_ends_all_after_what_came_before_it(depth: int) -> None:
    loads = [Load(lambda _: 1.0, frozenset({5}) if level == 0 else frozenset()) for level in range(depth)]

    async def body() -> None:
        items: Any = range(100)
        for load in loads:
            items = ps.map(load, items, concurrency=3)
        seen: list[int] = []
        with pytest.raises(ValueError, match="5"):
            await collect(items, seen)
        assert seen == [0, 1, 2, 3, 4]
        assert all(load.running == 0 for load in loads)
        assert loads[0].calls < 12
        with pytest.raises(StopAsyncIteration):
            await items.__anext__()

    virtually(body)


def test_a_source_that_fails_is_heard_after_its_items() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("no such file")

    async def broken() -> AsyncIterator[int]:
        for x in source():
            yield x

    async def body() -> None:
        for items in (source(), broken()):
            seen: list[int] = []
            with pytest.raises(OSError, match="no such file"):
                await collect(ps.map(Load(lambda _: 1.0), ps.map(Load(lambda _: 1.0), items)), seen)
            assert seen == [1, 2]

    virtually(body)


def test_with_return_exceptions_the_rest_goes_on() -> None:
    async def body() -> list[Any]:
        load = Load(lambda _: 1.0, frozenset({1}))
        return [str(x) async for x in ps.map(load, range(3), return_exceptions=True)]

    assert virtually(body) == ["0", "1", "2"]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_reader_that_breaks_off_cancels_what_runs(depth: int) -> None:
    loads = [Load(lambda _: 1.0) for _ in range(depth)]

    async def body() -> None:
        items: Any = range(10**9)
        for load in loads:
            items = ps.map(load, items, concurrency=4)
        async for _ in items:
            break
        del items
        gc.disable()
        try:
            await asyncio.sleep(0.01)
            assert [load.running for load in loads] == [0] * depth
        finally:
            gc.enable()

    virtually(body)


def test_a_cancelled_reader_cancels_what_runs() -> None:
    load = Load(lambda _: 100.0)

    async def read() -> None:
        async for _ in ps.map(load, range(9)):
            pass

    async def body() -> None:
        task = asyncio.get_running_loop().create_task(read())
        await asyncio.sleep(1)
        assert load.running == 9
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert load.running == 0

    virtually(body)


def test_calls_get_the_readers_budget_also_when_a_callback_makes_them() -> None:
    tenants: list[str] = []

    async def note(x: int) -> int:
        tenants.append(current_budget().tenant)
        await asyncio.sleep(1)
        return x

    async def body() -> None:
        with ps.budget(tenant="ann"):
            async for _ in ps.map(note, ps.map(note, range(5), concurrency=1), concurrency=1):
                pass

    virtually(body)
    assert tenants == ["ann"] * 10


def one(x: int) -> int:
    return -x


def many(xs: list[int]) -> list[int]:
    return [-x for x in xs]


class Steps:
    """Ends each request in its first step."""

    def add(self, slot: int, x: int) -> None:
        self.x = x

    def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:
        return [pair for slot in slots for pair in ((slot, -self.x), (slot, ps.END))]

    def drop(self, slot: int) -> None:
        pass


SCALE = Scale(1, 3)
PLACED = [
    (ps.service(one, on=ps.Thread(SCALE)), 12),
    (ps.service(many, on=ps.Thread(SCALE), batch=ps.Batch(max_size=5)), 30),
    (ps.service(Steps, on=ps.Thread(), batch=ps.Slots(8, stream=False)), 16),
]


@pytest.mark.parametrize(("service", "window"), PLACED, ids=lambda value: getattr(value, "name", str(value)))
def test_the_window_keeps_all_busy_that_there_may_be(service: Any, window: int) -> None:
    async def main() -> None:
        async with ps.Runtime(service):
            answers = ps.map(service, [7])
            assert answers.mapping.window == window  # type: ignore[attr-defined]
            assert [answer async for answer in answers] == [-7]

    asyncio.run(main())


def test_what_cannot_be_mapped_says_so() -> None:
    async def main() -> None:
        async with ps.Runtime():
            for wrong in (5, None, int):
                with pytest.raises(ConfigError, match="give an iterable"):
                    ps.map(Load(lambda x: 1.0), wrong)  # type: ignore[arg-type]
            for concurrency in (0, -1, 1.5):
                with pytest.raises(ConfigError, match=f"concurrency={concurrency}"):
                    ps.map(Load(lambda x: 1.0), [1], concurrency=concurrency)  # type: ignore[arg-type]

    asyncio.run(main())


def test_a_second_reader_of_the_same_map_is_refused() -> None:
    async def body() -> None:
        answers = ps.map(Load(lambda x: 1.0), range(4))
        first = asyncio.ensure_future(anext(answers))
        await asyncio.sleep(0.5)
        with pytest.raises(RuntimeError, match="is being read already"):
            await anext(answers)
        assert await first == 0
        assert [answer async for answer in answers] == [1, 2, 3]

    virtually(body)
