#!/usr/bin/env python3
"""Replicas that are killed, stopped, made to exit, to write garbage and to run out of memory, one fault a second under load.

    python bench/chaos.py [faults]

Four replicas, calls of 20 ms, 16 callers. Goodput is compared with what the replicas that were ready could have done: the
integral over time of their number, by what one of them did in five seconds without faults, before; one that is stopped
counts as ready until the watchdog's time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import stat
import statistics
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import penstock as ps
from penstock.errors import ProgressTimeout, WorkerLost

FAULTS = ("SIGKILL", "SIGSTOP", "exit", "garbage", "memory")
TIMEOUT = 1.0


@ps.service(on=ps.Process(4, max_restarts=1000), progress_timeout=TIMEOUT, safe=True, retry=ps.Retry())
def work(how: str = "") -> float:
    began = time.perf_counter()
    time.sleep(0.020)
    if how and not _once(how):
        return time.perf_counter() - began
    if how.startswith("exit"):
        os._exit(1)
    elif how.startswith("memory"):
        raise MemoryError
    elif how.startswith("garbage"):
        for fd in range(3, 64):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, random.randbytes(100))
    return time.perf_counter() - began


def _once(how: str) -> bool:
    """Each fault happens once, also when the call that brought it is run again."""
    try:
        os.close(os.open(os.path.join(os.environ["PENSTOCK_CHAOS"], how), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


async def call(ended: Counter[str], seconds: list[float], how: str = "") -> None:
    try:
        seconds.append(await work(how))
        ended["answered"] += 1
    except (WorkerLost, ProgressTimeout, MemoryError) as error:
        ended[type(error).__name__] += 1


async def main(faults: int) -> dict[str, Any]:
    rng, ended, seconds, capacity, over = random.Random(0), Counter[str](), [0.0] * 0, 0.0, False
    before = len(os.listdir("/proc/self/fd")), sorted(os.listdir("/dev/shm"))
    async with ps.Runtime(work) as runtime:
        station = runtime.bindings[work].station
        executor: Any = runtime.bindings[work].executor

        async def caller() -> None:
            while not over:
                await call(ended, seconds)

        async def measure() -> None:
            nonlocal capacity
            last = time.monotonic()
            while not over:
                await asyncio.sleep(0.005)
                now = time.monotonic()
                capacity += sum(replica.up for replica in station.replicas) * (now - last)
                last = now

        began = time.monotonic()
        tasks = [asyncio.create_task(caller()) for _ in range(16)] + [asyncio.create_task(measure())]
        await asyncio.sleep(5.0)
        calm, ended["answered"], usual, capacity = ended["answered"] / 5.0 / 4, 0, statistics.median(seconds), 0.0
        began = time.monotonic()
        for n in range(faults):
            await asyncio.sleep(1.0)
            how = FAULTS[n % len(FAULTS)]
            if how.startswith("SIG"):
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(rng.choice(list(executor.processes)), signal.Signals[how])
            else:
                tasks.append(asyncio.create_task(call(ended, seconds, f"{how}{n}")))
        over = True
        await asyncio.gather(*tasks)
        took = time.monotonic() - began
        leases = station.in_flight, len(station.running), len(station.waiting)
        deaths = runtime.restarts
    children = [pid for pid in os.listdir("/proc") if pid.isdigit() and _is_ours(pid)]
    return {
        "faults": faults,
        "replicas_down": deaths,
        "ended": dict(ended),
        "goodput_per_s": round(ended["answered"] / took, 1),
        "calm_per_s_and_replica": round(calm, 1),
        "median_call_ms": round(usual * 1e3, 2),
        "of_surviving_capacity": round(ended["answered"] / (calm * capacity), 3),
        "ready_of_4": round(capacity / took, 2),
        "leases_left": leases,
        "orphans": len(children),
        "descriptors_left": len(os.listdir("/proc/self/fd")) - before[0],
        "segments_left": len(os.listdir("/dev/shm")) - len(before[1]),
    }


def _is_ours(pid: str) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as status, open(f"/proc/{pid}/cmdline") as command:
        return f" {os.getpid()} " in status.read() and "executors/child" in command.read()
    return False


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PENSTOCK_CHAOS"] = directory
        print(json.dumps(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)), indent=1))
