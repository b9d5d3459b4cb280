#!/usr/bin/env python3
"""Child processes: round trips, batches and big arrays, beside what the standard library needs in the same run.

    python bench/process.py [--json] [row ...]        rows: trip batches model array

Bodies do nothing, sleep, or return what they got, so that what is measured is the way there and back. Each row takes
turns with its comparison, and medians are over the turns, because the machine may be shared.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

import penstock as ps

TURNS = 5
CALLERS = 128
QUEUE = ps.Queue(items=10_000)


@ps.service(on=ps.Process(1))
def noop(i: int = 0) -> int:
    return i


@ps.service(on=ps.Process(1), batch=ps.Batch(max_size=32, max_wait=0.001), admit=QUEUE)
def noops(xs: list[int]) -> list[int]:
    return xs


@ps.service(on=ps.Process(1), batch=ps.Batch(max_size=32, max_wait=0.005), admit=QUEUE)
def model(xs: list[int]) -> list[float]:
    """Each item's answer is how long the model call took."""
    began = time.perf_counter()
    time.sleep(0.010)
    return [time.perf_counter() - began] * len(xs)


@ps.service(on=ps.Process(1))
def echo(array: Any) -> Any:
    return array


def plain(i: Any = 0) -> Any:
    return i


async def trip() -> dict[str, Any]:
    """One call at a time."""
    loop = asyncio.get_running_loop()
    ours: list[float] = []
    theirs: list[float] = []
    cpu = []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        await loop.run_in_executor(pool, plain)
        for _ in range(TURNS):
            for times, call in ((ours, noop), (theirs, lambda i: loop.run_in_executor(pool, plain, i))):
                for i in range(100):
                    await call(i)
                began = time.process_time()
                for i in range(1000):
                    at = time.perf_counter()
                    await call(i)
                    times.append(time.perf_counter() - at)
                if times is ours:
                    cpu.append((time.process_time() - began) / 1000)
    return {
        "p50_us": round(statistics.median(ours) * 1e6, 1),
        "p99_us": round(statistics.quantiles(ours, n=100)[98] * 1e6, 1),
        "parent_cpu_us": round(statistics.median(cpu) * 1e6, 1),
        "pool_p50_us": round(statistics.median(theirs) * 1e6, 1),
    }


async def crowd(call: Callable[[int], Awaitable[Any]], seconds: float) -> tuple[float, list[Any]]:
    """Answers a second with `CALLERS` callers, and the answers."""
    answers: list[Any] = []
    end = time.perf_counter() + seconds

    async def caller(i: int) -> None:
        while time.perf_counter() < end:
            answers.append(await call(i))

    began = time.perf_counter()
    await asyncio.gather(*(caller(i) for i in range(CALLERS)))
    return len(answers) / (time.perf_counter() - began), answers


async def batches() -> dict[str, Any]:
    """No-op items in batches of 32; the pool gets them one by one, and as ready-made lists of 32."""
    loop = asyncio.get_running_loop()
    ours, single, lists = [], [], []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        await loop.run_in_executor(pool, plain)
        await crowd(noops, 0.5)
        for _ in range(TURNS):
            ours.append((await crowd(noops, 1.0))[0])
            single.append((await crowd(lambda i: loop.run_in_executor(pool, plain, i), 0.5))[0])
            began = time.perf_counter()
            for _ in range(500):
                await loop.run_in_executor(pool, plain, list(range(32)))
            lists.append(500 * 32 / (time.perf_counter() - began))
    return {
        "items_per_s": round(statistics.median(ours)),
        "best_items_per_s": round(max(ours)),
        "pool_one_by_one_per_s": round(statistics.median(single)),
        "pool_lists_of_32_per_s": round(statistics.median(lists)),
    }


async def modelled() -> dict[str, Any]:
    """10 ms a batch."""
    await crowd(model, 0.5)
    rates, calls = [], []
    for _ in range(TURNS):
        rate, answers = await crowd(model, 2.0)
        rates.append(rate)
        calls += answers
    ideal = 32 / statistics.median(calls)
    return {
        "items_per_s": round(statistics.median(rates)),
        "ideal_per_s": round(ideal),
        "share": round(statistics.median(rates) / ideal, 3),
    }


def piped(connection: Any) -> None:
    while (array := connection.recv()) is not None:
        connection.send(array)


async def arrays() -> dict[str, Any]:
    """8 MiB there and back; beside a multiprocessing pipe, which pickles."""
    array = np.random.default_rng(0).random(1 << 20)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=piped, args=(there,), daemon=True)
    child.start()
    ours, theirs = [], []
    for _ in range(20):
        assert np.array_equal(await echo(array), array)
        here.send(array)
        assert np.array_equal(here.recv(), array)
    for _ in range(TURNS):
        for _ in range(20):
            at = time.perf_counter()
            await echo(array)
            ours.append(time.perf_counter() - at)
        for _ in range(20):
            at = time.perf_counter()
            here.send(array)
            here.recv()
            theirs.append(time.perf_counter() - at)
    here.send(None)
    child.join()
    out = np.empty_like(array)
    copies = []
    for _ in range(50):
        at = time.perf_counter()
        out[:] = array
        copies.append(time.perf_counter() - at)
    mine, pipe = statistics.median(ours), statistics.median(theirs)
    return {
        "ms": round(mine * 1e3, 2),
        "pipe_ms": round(pipe * 1e3, 2),
        "times_faster": round(pipe / mine, 2),
        "one_copy_ms": round(statistics.median(copies) * 1e3, 2),
    }


ROWS = {"trip": (trip, noop), "batches": (batches, noops), "model": (modelled, model), "array": (arrays, echo)}


async def measure(rows: list[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for row in rows:
        function, service = ROWS[row]
        async with ps.Runtime(service):
            found[row] = await function()
        if "--json" not in sys.argv:
            print(f"{row:8}", "  ".join(f"{k}={v}" for k, v in found[row].items()), flush=True)
    return found


def main() -> None:
    logging.disable(logging.WARNING)  # a benchmark blocks the loop on purpose
    rows = [word for word in sys.argv[1:] if word in ROWS] or list(ROWS)
    try:
        import uvloop
    except ImportError:
        found = asyncio.run(measure(rows))
    else:
        found = uvloop.run(measure(rows))
    if "--json" in sys.argv:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
