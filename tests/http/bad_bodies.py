"""Services that do everything wrong, for their callers to be told so."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import penstock as ps
from penstock.errors import QueueFull


@ps.service
async def typed(x: int, names: list[str] = []) -> int:  # noqa: B006
    return x + len(names)


@ps.service(safe=True)
async def square(x: int) -> int:
    return x * x


@ps.service
async def sent(data: bytes) -> int:
    return len(data)


@ps.service
async def raises() -> None:
    raise ValueError("a secret")


@ps.service
def raises_in_thread() -> None:
    raise ValueError("a secret")


@ps.service
async def hangs() -> None:
    await asyncio.Event().wait()


@ps.service(within=0.05)
async def bounded() -> None:
    await asyncio.Event().wait()


@ps.service(progress_timeout=0.05)
def stalls() -> None:
    time.sleep(0.5)


@ps.service(progress_timeout=0.05)
async def stalls_in_stream() -> AsyncIterator[int]:
    yield 1
    await asyncio.Event().wait()


@ps.service(batch=ps.Batch(max_size=4, max_wait=0.001))
def too_few(xs: list[int]) -> list[int]:
    return []


@ps.service(batch=ps.Batch(max_size=4, max_wait=0.001))
def no_list(xs: list[int]) -> Any:
    return None


@ps.service
async def opaque() -> Any:
    return {"deep": [1, object()]}


@ps.service
async def circular() -> Any:
    parts: list[Any] = []
    parts.append(parts)
    return parts


@ps.service
async def opaque_in_stream() -> AsyncIterator[Any]:
    yield 1
    yield object()


@ps.service
async def exits() -> None:
    sys.exit(3)


@ps.service
def exits_in_thread() -> None:
    sys.exit(3)


@ps.service
def exits_in_stream() -> Iterator[int]:
    yield 1
    sys.exit(3)


@ps.service
async def cancels() -> None:
    raise asyncio.CancelledError


@ps.service(on=ps.Process(1))
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@ps.service(on=ps.Process(1))
def exits_in_process() -> None:
    sys.exit(3)


@ps.service(on=ps.Process(1))
def alive() -> int:
    return os.getpid()


SERVICES = [value for value in list(vars().values()) if isinstance(value, ps.Service)]


class Odd(BaseException):
    """No Exception."""


@ps.service
async def raises_odd() -> None:
    raise Odd("a secret")


def unpriced(*_: Any) -> int:
    raise LookupError("a secret")


@ps.service(batch=ps.Batch(cost=unpriced))
def costs_what(xs: list[int]) -> list[int]:
    return xs


@ps.service(size=unpriced)
async def weighs_what() -> None:
    pass


@ps.service
async def refuses_for_ever() -> None:
    raise QueueFull("no time", retry_after=float("inf"))


@ps.service
async def raises_odd_in_stream() -> AsyncIterator[int]:
    yield 1
    raise Odd("a secret")


@ps.service
async def exits_in_a_join() -> None:
    await ps.join(square(2), exits())


@ps.service
async def exits_in_a_map() -> None:
    async for _ in ps.map(lambda _: exits(), range(2)):
        pass


@ps.service
async def exits_when_started() -> None:
    await exits().start()
