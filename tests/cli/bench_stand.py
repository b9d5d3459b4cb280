"""A server of small services on this loop, and commands that run in children of their own."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from served import environment

import penstock as ps
from penstock.http.serve import serving


@ps.service
async def hello(name: str) -> str:
    return f"Hello, {name}!"


@ps.service
async def count(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i
        await asyncio.sleep(0.001)
    if n == 13:
        raise ValueError("thirteen")


@ps.service(batch=ps.Batch(max_size=8, max_wait=0.002))
def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@ps.service(limit=ps.Fixed(1), admit=ps.Queue(items=1))
async def narrow() -> int:
    await asyncio.sleep(0.01)
    return 1


@asynccontextmanager
async def server(*services: Any, **options: Any) -> AsyncIterator[str]:
    app = ps.App(*(services or (hello, count, double, narrow)), log=False, **options)
    async with serving(app, grace=1.0) as served:
        yield f"http://127.0.0.1:{served.port}"


async def command(*arguments: str) -> asyncio.subprocess.Process:
    """`penstock ...` with pipes; of these sources, whatever else is installed."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "penstock",
        *arguments,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
