"""How an executor waits for its replicas to load."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any


async def all_ready(loading: Iterable[Awaitable[Any]], stop: Callable[[float], Awaitable[None]]) -> None:
    """Wait until all have loaded. If one fails, or nobody waits any more, raise when all have come so far and have stopped."""
    ready = [asyncio.ensure_future(each) for each in loading]
    try:
        await asyncio.gather(*ready)
    except BaseException:
        await asyncio.gather(*ready, return_exceptions=True)
        await stop(0.0)
        raise
