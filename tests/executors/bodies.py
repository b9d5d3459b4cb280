"""Bodies that child processes import."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import os
import signal
import stat
import sys
import time
import types
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np

import penstock as ps
from penstock.context import current_budget

two = ps.Process(2)


@ps.service(on=ps.Process(1))
def double(x: int) -> int:
    return 2 * x


def pid() -> int:
    return os.getpid()


@ps.service(on=two)
def whoami(_: int = 0) -> int:
    return os.getpid()


@ps.service(on=ps.Process(1))
def die(how: str) -> str:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "a signal without a name":
        os.kill(os.getpid(), signal.SIGRTMIN + 3)
    if how == "abort":
        os.abort()
    if how == "exit":
        sys.exit(3)
    if how == "raise":
        raise ValueError("a bad value")
    if how == "lambda":
        return lambda: None  # type: ignore[return-value]
    return how


runs = 0


@ps.service(on=ps.Process(1), cache=ps.Cache())
def counted(key: str) -> tuple[int, int]:
    """Whose answer it is: the process, and how often it has been asked."""
    global runs
    runs += 1
    if key == "die" and runs == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid(), runs


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


def _poisonous(xs: list[int]) -> list[int]:
    """Each item above 100 kills the process that meets it; the batch's size is the answer."""
    if any(x > 100 for x in xs):
        os.kill(os.getpid(), signal.SIGKILL)
    return [x + 1 for x in xs]


BATCH = ps.Batch(max_size=16, max_wait=0.05, learn=False)
poisoned = ps.service(_poisonous, name="poisoned", on=ps.Process(1, max_restarts=2), batch=BATCH)
unsafe = ps.service(_poisonous, name="unsafe", on=ps.Process(1), batch=BATCH, safe=False)
fragile = ps.service(_poisonous, name="fragile", on=ps.Process(2, max_restarts=0), batch=ps.Batch(max_size=1))


class OutOfMemoryError(RuntimeError):
    """Named as torch names it."""


@ps.service(on=ps.Process(1), batch=BATCH)
def hungry(xs: list[int]) -> list[int]:
    """Five items fit into memory; the answer is how many ran together. Negative ones never fit."""
    if len(xs) > 5 or xs[0] < 0:
        raise OutOfMemoryError("tried to allocate 20 GiB")
    return [len(xs)] * len(xs)


def _hang(how: str) -> int:
    if how == "gil":
        ctypes.PyDLL(None).sleep(1000)  # native code that does not let go of the interpreter
    elif how == "sleep":
        time.sleep(1000)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    return os.getpid()


hanging = ps.service(_hang, name="hanging", on=ps.Process(1), progress_timeout=0.4)
overdue = ps.service(_hang, name="overdue", on=ps.Process(1, kill_after=0.05, max_restarts=0))
recycled = ps.service(_hang, name="recycled", on=ps.Process(1, recycle=3))


class Warm:
    def __init__(self, fail: bool = False) -> None:
        self.calls: list[int] = []
        self.fail = fail

    def __call__(self, xs: list[int]) -> list[list[int]]:
        if self.fail:
            raise RuntimeError("cold")
        self.calls += xs
        return [list(self.calls)] * len(xs)


warm = ps.service(Warm, name="warm", on=ps.Process(1, warmup=(7,)), batch=BATCH)
cold = ps.service(Warm, True, name="cold", on=ps.Process(1, warmup=(7,)), batch=BATCH)


class Sluggish:
    def __init__(self) -> None:
        time.sleep(1000)

    def __call__(self, x: int) -> int:
        return x


sluggish = ps.service(Sluggish, name="sluggish", on=ps.Process(1, startup_timeout=0.5))


SEEN = os.environ.get("SEEN", "")
CORE = min(os.sched_getaffinity(0))


@ps.service(on=ps.Process(1, device="cpu", threads=2, cores=(CORE,), env={"SEEN": "at import"}))
def placed(_: str) -> dict[str, object]:
    return {
        "seen": SEEN,
        "device": os.environ["PENSTOCK_DEVICE"],
        "threads": os.environ["OMP_NUM_THREADS"],
        "cores": sorted(os.sched_getaffinity(0)),
    }


@ps.service(on=ps.Process(1))
def talkative(text: str) -> None:
    print(text)
    print("on stderr", file=sys.stderr)
    if "last" in text:
        os.abort()


seen: list[tuple[str, float | None]] = []


@ps.service
async def inner(x: int) -> int:
    """Runs in the parent, and notes under what budget."""
    budget = current_budget()
    seen.append((budget.tenant, budget.deadline))
    if x < 0:
        raise ValueError("negative")
    if x == 99:
        await asyncio.Event().wait()
    return x * 10


@ps.service(on=ps.Process(1))
def outer(x: int) -> int:
    if x == 5:
        with ps.budget(within=0.05):
            return inner.submit(99).result() + 1
    return inner.submit(x).result() + 1


@ps.service(on=ps.Process(1))
async def async_outer(x: int) -> list[int]:
    return await asyncio.gather(*(inner(x + n) for n in range(3)))


@ps.service(on=ps.Process(1), batch=ps.Batch(max_size=4, max_wait=0.01))
def batched_outer(xs: list[int]) -> list[int]:
    futures = [inner.submit(x) for x in xs]
    return [future.result() for future in futures]


@ps.service(on=ps.Process(1))
def itself(x: int) -> int:
    return itself.submit(x).result()


@ps.service(on=ps.Process(1))
def unlisted(x: int) -> int:
    return double.submit(x).result()


@ps.service(on=ps.Process(1))
def big_outer(n: int) -> float:
    return float(echo.submit(np.ones(n)).result().sum())


on_device = ps.service(_hang, name="on_device", on=ps.Process(1, recycle=3, device="xpu:0"))


@ps.service(on=ps.Process(1))
def leaves(path: str) -> int:
    atexit.register(lambda: Path(path).write_text("has left"))
    return 1


@ps.service(on=ps.Process(1))
def babbles(which: int) -> None:
    """Writes into one of the two sockets to the parent."""
    sockets = [fd for fd in sorted(map(int, os.listdir("/proc/self/fd"))) if _is_socket(fd)]
    os.write(sockets[which], b"What is this? " * 10)
    time.sleep(1000)


@ps.service(on=ps.Process(1, device="xpu:0"))
def occupies(used: int) -> int:
    """Has what a child reads of torch, as if an accelerator were there."""
    device = types.SimpleNamespace(is_initialized=lambda: True, device_count=lambda: 1, memory_allocated=lambda n: used)
    device.memory_reserved, device.max_memory_allocated = lambda n: 2 * used, lambda n: 3 * used
    sys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: False), xpu=device)  # type: ignore[assignment]
    return used


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
