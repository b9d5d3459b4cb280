"""Bodies for storms: they answer, or do what they are told to do to their process. They import nothing that is slow."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import time
from collections.abc import Iterator

import penstock as ps

REPLICAS = 2
OPTIONS = {"max_restarts": 10_000, "kill_after": 0.2, "startup_timeout": 15.0}  # one may be stopped while it loads
QUEUE = ps.Queue(patience=False)  # nobody is turned away for what others did
TIMEOUT = 1.0


def suffer(how: str) -> None:
    """What can happen to a process from inside."""
    if how == "exit":
        os._exit(3)
    elif how == "abort":
        os.abort()
    elif how == "memory":
        raise MemoryError("told so")
    elif how == "hang":
        time.sleep(1000)
    elif how == "garbage":
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, random.randbytes(200))


@ps.service(on=ps.Process(REPLICAS, **OPTIONS), progress_timeout=TIMEOUT, admit=QUEUE)
def single(x: int, how: str = "") -> int:
    suffer(how)
    return x * x


@ps.service(
    on=ps.Process(REPLICAS, **OPTIONS), batch=ps.Batch(max_size=8, max_wait=0.002), progress_timeout=TIMEOUT, admit=QUEUE
)
def batched(xs: list[tuple[int, str, bytes]]) -> list[tuple[int, bytes]]:
    for _, how, _ in xs:
        suffer(how)
    return [(x * x, data) for x, _, data in xs]


@ps.service(on=ps.Process(1, **OPTIONS), progress_timeout=TIMEOUT, admit=QUEUE)
def stream(n: int, how: str = "") -> Iterator[int]:
    for i in range(n):
        if i == n // 2:
            suffer(how)
        yield i
