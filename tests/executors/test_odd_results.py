"""Whatever a body answers or raises, each caller gets exactly one end, and the next call is served."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

import penstock as ps
from penstock.errors import BadResult, ServiceError

from . import odd_bodies as bodies

BATCHED = pytest.mark.parametrize("service", [bodies.in_thread, bodies.on_loop, bodies.in_process], ids=lambda s: s.name)
UNARY = pytest.mark.parametrize("service", [bodies.one_in_thread, bodies.one_in_process], ids=lambda s: s.name)


async def ends(service: Any, *each: str) -> list[Any]:
    async with asyncio.timeout(20.0):
        return await asyncio.gather(*map(service, each), return_exceptions=True)


@BATCHED
def test_items_that_no_future_can_hold_fail_alone(service: Any) -> None:
    async def main() -> None:
        async with ps.Runtime(service, grace=1.0) as runtime:
            for kind in bodies.ITEMS:
                first, second, third = await ends(service, "a", kind, "b")
                assert (first, third) == ("a", "b")
                assert isinstance(second, bodies.Mute | ServiceError), kind
                assert isinstance(second, bodies.Mute) or kind in str(second) or "sys.exit" in str(second)
            assert runtime.restarts == 0

    asyncio.run(main())


@BATCHED
def test_a_batch_that_cannot_be_read_fails_its_own_callers(service: Any) -> None:
    async def main() -> None:
        async with ps.Runtime(service, grace=1.0) as runtime:
            for whole in ("Short", "Sealed", "raise"):
                for end in await ends(service, whole, "a", "b"):
                    assert isinstance(end, BadResult if whole == "Short" else Exception), (whole, end)
            assert await ends(service, "a", "b", "c") == ["a", "b", "c"]
            assert runtime.restarts == 0

    asyncio.run(main())


def plainly(function: Any) -> Any:
    """A decorator as people write them, which hides what it wraps."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


def test_a_body_whose_decorator_hides_that_it_is_async_or_a_generator_is_told_so() -> None:
    async def coroutine(x: int) -> int:
        return x

    def generator(x: int) -> Any:
        yield x

    async def async_generator(x: int) -> Any:
        yield x

    async def main() -> None:
        services = [ps.service(plainly(each), name=each.__name__) for each in (coroutine, generator, async_generator)]
        async with ps.Runtime(*services):
            for service in services:
                with pytest.raises(BadResult, match=f"returned an? {service.name.replace('_', ' ')}, which nobody runs"):
                    await service(1)

    asyncio.run(main())


@UNARY
def test_an_answer_that_no_future_can_hold_is_a_failure(service: Any) -> None:
    async def main() -> None:
        async with ps.Runtime(service, grace=1.0):
            for kind in bodies.ITEMS:
                (end,) = await ends(service, kind)
                assert isinstance(end, bodies.Mute | ServiceError), kind
            assert await ends(service, "a") == ["a"]

    asyncio.run(main())
