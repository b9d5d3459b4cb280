"""What a remote penstock server serves in tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import numpy as np

import penstock as ps
from penstock.context import current_budget
from penstock.errors import QueueFull

seen = {"cancelled": 0, "running": 0, "produced": 0}


@ps.service(safe=True)
async def double(x: int, plus: int = 0) -> int:
    return 2 * x + plus


@ps.service
async def doubles(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@ps.service
async def fail(kind: str) -> None:
    if kind == "full":
        raise QueueFull("nothing is free", retry_after=7.0)
    raise ValueError("a bug")


@ps.service
async def hang() -> None:
    seen["running"] += 1
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        seen["cancelled"] += 1
        raise
    finally:
        seen["running"] -= 1


@ps.service
async def budget() -> dict[str, object]:
    now, found = asyncio.get_running_loop().time(), current_budget()
    within = None if found.deadline is None else found.deadline - now
    return {"within": within, "priority": found.priority, "tenant": found.tenant}


@ps.service
async def count(n: int, fails: bool = False) -> AsyncIterator[int]:
    for i in range(n):
        seen["produced"] += 1
        yield i
    if fails:
        raise ValueError("a bug in the middle")


@ps.service
async def reverse(data: bytes) -> bytes:
    return data[::-1]


@ps.service
async def scale(data: np.ndarray, by: float) -> np.ndarray:
    return data * by


@ps.service
async def told() -> dict[str, int]:
    return {**seen, "pid": os.getpid()}


app = ps.App(double, doubles, fail, hang, budget, count, reverse, scale, told)
