"""Calls together: side by side (`join`), and within a time (`within`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from penstock.context import budget
from penstock.core.policy.declared import number
from penstock.errors import DeadlineExceeded
from penstock.runtime.call import BoundCall

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
T = TypeVar("T")


@overload
async def join(a: Awaitable[A], b: Awaitable[B], /) -> tuple[A, B]: ...
@overload
async def join(a: Awaitable[A], b: Awaitable[B], c: Awaitable[C], /) -> tuple[A, B, C]: ...
@overload
async def join(*calls: Awaitable[T]) -> tuple[T, ...]: ...
async def join(*calls: Awaitable[Any]) -> tuple[Any, ...]:
    """Run calls side by side; their answers in order. If one fails the others are cancelled, and its error is raised."""
    tasks: list[asyncio.Future[Any]] = []
    try:
        for call in calls:
            tasks.append(begin(call))
        return tuple(await asyncio.gather(*tasks))
    except BaseException as error:
        for task in tasks:
            if isinstance(task, BoundCall) and not isinstance(error, asyncio.CancelledError):
                task.withdraw()
            else:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def within(seconds: float, make: Callable[[], Awaitable[T]] | Awaitable[T]) -> T:
    """The answer of `make()`, or DeadlineExceeded after `seconds`; calls made in `make` get that deadline.

    A call that was made before may be given instead of `make`; it is then cancelled when the time is over, but its
    queue does not know the deadline.
    """
    number("within(seconds, ...)", seconds, "seconds", above=0)
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            if callable(make):
                with budget(within=seconds):
                    return await make()
            return await make
    except TimeoutError as error:
        if not limit.expired() or isinstance(error, DeadlineExceeded):
            raise  # it is the body's own
        raise DeadlineExceeded(f"not done within {seconds:g} s") from error


def begin(call: Awaitable[Any]) -> asyncio.Future[Any]:
    """The awaitable as a future that is under way."""
    future = asyncio.ensure_future(call)  # a task, unless it is a call on the runtime's own loop
    return future.start() if isinstance(future, BoundCall) else future
