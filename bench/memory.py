"""A budget of 1 GiB, and requests of 10 to 700 MiB that really allocate, in child processes.

Compared with fixed concurrencies of the same children and without a budget: the best of those that stay within it. Resident memory of the
children above their idle level is sampled every 10 ms. `python bench/memory.py` prints one line a run.
"""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import Any

import psutil

import penstock as ps

MIB = 1 << 20
BUDGET = 1024 * MIB
REQUESTS = 40
ram = ps.Memory("ram", size_bytes=BUDGET, device="host")


def hold(size: int) -> int:
    """Touch every page, and keep them for as long as work of that size would."""
    data = bytearray(size)
    data[::4096] = b"x" * len(data[::4096])
    time.sleep(0.1 + size / (500 * MIB))
    return len(data)


budgeted = ps.service(hold, name="budgeted", on=ps.Process(6), needs={ram: lambda size: size}, start_timeout=600.0)
fixed = [ps.service(hold, name=f"fixed{n}", on=ps.Process(6), limit=ps.Fixed(n), start_timeout=600.0) for n in (1, 2, 3, 4)]


async def watch(children: list[psutil.Process], idle: int, peaks: list[int]) -> None:
    """Sample until it is cancelled."""
    while True:
        peaks.append(sum(child.memory_info().rss for child in children) - idle)
        await asyncio.sleep(0.01)


async def measure(service: ps.Service[..., Any], sizes: list[int]) -> tuple[float, float, float]:
    """Seconds for all, the most that was resident in MiB, and the longest wait of one of the largest in seconds."""
    async with ps.Runtime(service):
        await asyncio.gather(*(service(MIB) for _ in range(24)))
        children = psutil.Process().children(recursive=True)
        idle = sum(child.memory_info().rss for child in children)
        peaks: list[int] = []
        watching = asyncio.ensure_future(watch(children, idle, peaks))
        began = time.monotonic()
        calls = [service(size).start() for size in sizes]
        await asyncio.gather(*calls)
        seconds = time.monotonic() - began
        watching.cancel()
        large = sorted(zip(sizes, calls, strict=True), key=lambda pair: pair[0])[-len(sizes) // 10 :]
        return seconds, max(peaks) / MIB, max(call.timing.queued for _, call in large)


async def main() -> None:
    random = Random(7)
    sizes = [random.randrange(10 * MIB, 700 * MIB) for _ in range(REQUESTS)]
    for service in (budgeted, *fixed):
        seconds, peak, wait = await measure(service, sizes)
        print(f"{service.name:9} {seconds:6.2f} s   peak {peak:5.0f} MiB of {BUDGET // MIB}   largest waited {wait:5.2f} s")


if __name__ == "__main__":
    asyncio.run(main())
