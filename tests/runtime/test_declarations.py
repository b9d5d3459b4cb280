"""Mistakes in declarations, and functions in them that misbehave: told to whoever made them, harming nobody else."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock.errors import ConfigError, TooLarge
from penstock.policy import Sticky
from penstock.sim.loop import VirtualLoop

nan = math.nan


def virtually(*services: Any) -> Callable[[Callable[[ps.Runtime], Coroutine[Any, Any, None]]], None]:
    """Run an async test body in a runtime with these services, in virtual time."""

    def with_body(body: Callable[[ps.Runtime], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with ps.Runtime(*services, grace=0.0, clock=loop.time, watch=False) as runtime:
                await body(runtime)

        loop = VirtualLoop()
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()

    return with_body


async def plain(x: int) -> int:
    await asyncio.sleep(1.0)
    return x


async def batched(xs: list[int]) -> list[int]:
    await asyncio.sleep(1.0)
    return xs


KINDS: list[dict[str, Any]] = [
    {"batch": 3},
    {"batch": ps.Batch},
    {"admit": [ps.Queue()]},
    {"admit": ps.Queue},
    {"admit": (ps.Queue(), 5)},
    {"order": ps.Fifo},
    {"order": "fifo"},
    {"limit": 5},
    {"limit": [ps.Fixed(2)]},
    {"retry": 3, "safe": True},
    {"on": "thread"},
    {"on": ps.Thread},
    {"needs": ps.Pool("p", 1.0)},
    {"size": 5},
    {"cache": True},
    {"route": 5},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_an_option_of_another_kind_is_refused_by_name(options: dict[str, Any]) -> None:
    option = next(iter(options))
    with pytest.raises(ConfigError, match=rf"service\({option}=.*give .*\(|{option}=.*give a"):
        ps.service(plain, **options)


WRONG: list[Callable[[], object]] = [
    lambda: ps.Batch(max_size=2.5),  # type: ignore[arg-type]
    lambda: ps.Batch(max_size=True),
    lambda: ps.Batch(max_age=nan),
    lambda: ps.Batch(cost=3),  # type: ignore[arg-type]
    lambda: ps.Batch(key="x"),  # type: ignore[arg-type]
    lambda: ps.Queue(items=nan),  # type: ignore[arg-type]
    lambda: ps.Queue(items="5"),  # type: ignore[arg-type]
    lambda: ps.Queue(max_wait=nan),
    lambda: ps.Latest(key="x"),  # type: ignore[arg-type]
    lambda: ps.Fixed(1.5),  # type: ignore[arg-type]
    lambda: ps.Rate(10, burst=nan),  # type: ignore[arg-type]
    lambda: ps.Rate(10, min_gap=nan),
    lambda: ps.Priority(then=ps.Fifo),  # type: ignore[arg-type]
    lambda: ps.Priority(then=ps.Priority()),  # type: ignore[arg-type]
    lambda: ps.FairShare(then=ps.FairShare()),  # type: ignore[arg-type]
    lambda: ps.FairShare(weights=["a"]),  # type: ignore[arg-type]
    lambda: ps.FairShare(weights={"a": "2"}),  # type: ignore[dict-item]
    lambda: ps.Retry(on=ValueError),  # type: ignore[arg-type]
    lambda: ps.Slots(2.5),  # type: ignore[arg-type]
    lambda: ps.Thread(2.5),  # type: ignore[arg-type]
    lambda: ps.Process(1, threads=0),
    lambda: ps.Cache(key=3),  # type: ignore[arg-type]
    lambda: Sticky(key=3),  # type: ignore[arg-type]
    lambda: ps.service(plain, start_timeout=nan),
    lambda: ps.service(plain, progress_timeout=0),
    lambda: ps.service(plain, buffer=1.5),
    lambda: ps.service(plain, name=5),
    lambda: ps.Runtime(plain),  # type: ignore[arg-type]
    lambda: ps.Runtime(grace=nan),
    lambda: ps.App(mounts={"web": ps.App()}),
    lambda: ps.App(mounts={"/web": 5}),  # type: ignore[dict-item]
    lambda: ps.budget(priority="high").__enter__(),  # type: ignore[arg-type]
    lambda: ps.budget(priority=1.5).__enter__(),  # type: ignore[arg-type]
    lambda: ps.budget(tenant=5).__enter__(),  # type: ignore[arg-type]
    lambda: ps.budget(deadline=nan).__enter__(),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_cannot_be_is_refused_where_it_is_said(number: int) -> None:
    with pytest.raises(ConfigError):
        WRONG[number]()


def test_a_number_of_numpy_is_a_number() -> None:
    assert ps.Batch(max_size=np.int64(8)).max_size == 8  # type: ignore[arg-type]


def odd_for(three: Any, *, many: bool = False) -> Callable[..., Any]:
    """A function of a declaration that misbehaves for 3; `many`: only among others."""

    def function(given: Any) -> Any:
        values = given if isinstance(given, list) else [given]
        if 3 not in values or (many and len(values) == 1):
            return len(values)
        if isinstance(three, Exception):
            raise three
        return three

    return function


# the option, how the call of 3 ends
ODD: dict[str, tuple[dict[str, Any], type[Exception] | None]] = {
    "cost raises": ({"batch": ps.Batch(cost=odd_for(LookupError()), max_cost=8.0)}, LookupError),
    "cost is nan": ({"batch": ps.Batch(cost=odd_for(nan))}, ConfigError),
    "cost is negative": ({"batch": ps.Batch(cost=odd_for(-1.0))}, ConfigError),
    "cost has no bound": ({"batch": ps.Batch(cost=odd_for(math.inf))}, ConfigError),
    "cost can never fit": ({"batch": ps.Batch(cost=odd_for(math.inf), max_cost=8.0)}, TooLarge),
    "cost of many raises": ({"batch": ps.Batch(cost=odd_for(LookupError(), many=True), max_cost=8.0)}, None),
    "cost of many is nan": ({"batch": ps.Batch(cost=odd_for(nan, many=True), max_cost=8.0)}, None),
    "key is nan": ({"batch": ps.Batch(key=odd_for(nan))}, ConfigError),
    "key is an array": ({"batch": ps.Batch(key=odd_for(np.arange(2)))}, ValueError),
    "key raises": ({"batch": ps.Batch(key=odd_for(LookupError()))}, LookupError),
    "size is nan": ({"batch": ps.Batch(), "size": odd_for(nan)}, ConfigError),
    "size is negative": ({"batch": ps.Batch(), "size": odd_for(-1)}, ConfigError),
    "size raises": ({"batch": ps.Batch(), "size": odd_for(LookupError())}, LookupError),
}


@pytest.mark.parametrize("name", ODD)
def test_a_function_that_misbehaves_for_one_input_fails_that_call_alone(name: str) -> None:
    options, error = ODD[name]
    service = ps.service(batched, **options)

    async def body(runtime: ps.Runtime) -> None:
        for _ in range(3):
            ends = await asyncio.gather(*map(service, range(8)), return_exceptions=True)
            assert ends[:3] == [0, 1, 2] and ends[4:] == [4, 5, 6, 7]
            assert ends[3] == 3 if error is None else isinstance(ends[3], error), ends[3]
            mapped = [end async for end in ps.map(service, range(8), return_exceptions=True)]
            assert [type(end) for end in mapped] == [type(end) for end in ends]
        assert not runtime.busy()

    virtually(service)(body)


def test_the_queue_of_a_small_profile_holds_two_batches() -> None:
    service = ps.service(batched, batch=ps.Batch(max_size=64))

    async def main() -> None:
        async with ps.Runtime(service, profile="edge") as runtime:
            assert runtime.scheduler.stations["batched"].options.queue.items == 128
            runtime.bind(ps.service(batched, name="small", batch=ps.Batch(max_size=2)))
            assert runtime.scheduler.stations["small"].options.queue.items == runtime.sizes.queue_items

    asyncio.run(main())
