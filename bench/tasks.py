#!/usr/bin/env python3
"""Row E: what one no-op call costs in this process, beside what asyncio and its executors cost in the same run.

    python bench/tasks.py [--json]

The best and the median of several repeats, because other work on the machine can only add; what is to be compared takes
turns. Microseconds a call.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import penstock as ps

QUEUE = ps.Queue(items=200_000)


@ps.service
async def inline(i: int = 0) -> int:
    return i


@ps.service(batch=ps.Batch(max_size=64, max_wait=0.001), admit=QUEUE)
async def batched(xs: list[int]) -> list[int]:
    return xs


@ps.service(on=ps.Thread(4), admit=QUEUE)
def threaded(i: int = 0) -> int:
    return i


def plain(i: int = 0) -> int:
    return i


async def aplain(i: int = 0) -> int:
    return i


async def inline_one_by_one(n: int) -> None:
    for i in range(n):
        await inline(i)


async def inline_gathered(n: int) -> None:
    await asyncio.gather(*[inline(i) for i in range(n)])


async def batched_gathered(n: int) -> None:
    await asyncio.gather(*[batched(i) for i in range(n)])


async def threaded_gathered(n: int) -> None:
    await asyncio.gather(*[threaded(i) for i in range(n)])


async def threaded_one_by_one(n: int) -> None:
    for i in range(n):
        await threaded(i)


async def task_gathered(n: int) -> None:
    await asyncio.gather(*[asyncio.create_task(aplain(i)) for i in range(n)])


async def executor_gathered(n: int) -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(4) as pool:
        await asyncio.gather(*[loop.run_in_executor(pool, plain, i) for i in range(n)])


async def executor_one_by_one(n: int) -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(4) as pool:
        for i in range(n):
            await loop.run_in_executor(pool, plain, i)


async def machinery(n: int) -> None:
    """Row J's machinery: four chained maps of functions that do nothing."""
    samples = ps.map(stage4, ps.map(stage3, ps.map(stage2, ps.map(stage1, range(n)))))
    assert [sample async for sample in samples] == list(range(n))


stage1, stage2, stage3, stage4 = (ps.service(plain, name=f"stage{k}", on=ps.Thread(1)) for k in range(1, 5))

Row = tuple[Callable[[int], Awaitable[None]], int]
ROWS: list[tuple[list[Row], int]] = [
    ([(task_gathered, 10_000), (inline_one_by_one, 10_000), (inline_gathered, 10_000), (batched_gathered, 10_000)], 8),
    ([(executor_gathered, 10_000), (threaded_gathered, 10_000)], 5),
    ([(executor_one_by_one, 2_000), (threaded_one_by_one, 2_000)], 7),
    ([(inline_gathered, 100_000), (threaded_gathered, 100_000)], 2),
    ([(machinery, 2_000)], 5),
]


async def measure(loop: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    async with ps.Runtime(inline, batched, threaded, stage1, stage2, stage3, stage4):
        for group, repeats in ROWS:
            took: dict[Row, list[float]] = {row: [] for row in group}
            for function, n in group * repeats:
                gc.collect()
                with ps.budget(within=60.0):
                    began = time.perf_counter()
                    await function(n)
                    took[function, n].append((time.perf_counter() - began) / n * 1e6)
            for (function, n), each in took.items():
                best, median = min(each), sorted(each)[len(each) // 2]
                what = function.__name__
                found.append({"loop": loop, "what": what, "n": n, "us": round(best, 2), "median_us": round(median, 2)})
                if "--json" not in sys.argv:
                    print(f"{loop:8} {what:22} n={n:<7} best {best:8.2f} us, median {median:8.2f} us", flush=True)
    return found


def main() -> None:
    logging.disable(logging.WARNING)  # a benchmark blocks the loop on purpose
    rows = asyncio.run(measure("asyncio"))
    try:
        import uvloop
    except ImportError:
        pass
    else:
        rows += uvloop.run(measure("uvloop"))
    if "--json" in sys.argv:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
