"""Bodies that child processes import."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator

import numpy as np

import penstock as ps

two = ps.Process(2)


@ps.service(on=ps.Process(1))
def double(x: int) -> int:
    return 2 * x


@ps.service(on=two)
def whoami(_: int = 0) -> int:
    return os.getpid()


@ps.service(on=ps.Process(1))
def die(how: str) -> str:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "abort":
        os.abort()
    if how == "exit":
        sys.exit(3)
    if how == "raise":
        raise ValueError("a bad value")
    if how == "lambda":
        return lambda: None  # type: ignore[return-value]
    return how


@ps.service(on=ps.Process(1))
def count(n: int) -> Iterator[int]:
    yield from range(n)


@ps.service(on=ps.Process(1))
async def acount(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


@ps.service(on=ps.Process(1), batch=ps.Batch(max_size=4, max_wait=0.005))
def halves(xs: list[int]) -> list[float | Exception]:
    return [ValueError("odd") if x % 2 else x / 2 for x in xs]


class Broken:
    def __init__(self) -> None:
        raise RuntimeError("no weights here")

    def __call__(self, x: int) -> int:
        return x


broken = ps.service(Broken, on=ps.Process(1), name="broken")


@ps.service(on=ps.Process(1))
def echo(value: object) -> object:
    return value


@ps.service(on=ps.Process(1), batch=ps.Batch(max_size=8, max_wait=0.005))
def scaled(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [2 * array for array in arrays]


kept: list[np.ndarray] = []


@ps.service(on=ps.Process(1))
def keep(array: np.ndarray) -> float:
    """Holds on to what it got, as a cache would."""
    kept.append(array)
    return float(sum(a[0] for a in kept))
