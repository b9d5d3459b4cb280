"""What the benchmarks of models over HTTP share: a pinned server, a pinned offline bound beside it, and closed-loop clients.

Both are measured in turns, by wall clock and by the processor time of all their processes, so that a neighbour's burst
shows as a difference between the two.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent
LAST = (os.cpu_count() or 1) - 1


class Rate(NamedTuple):
    """How much a second, and a second of processor time; the mean latency, in seconds."""

    wall: float
    cpu: float
    mean: float = 0.0


def pinned(*command: str, core: int = 0, **pipes: Any) -> subprocess.Popen[str]:
    """A child on one processor, with one thread for numeric libraries."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{ROOT / 'bench'}"}
    return subprocess.Popen(["taskset", "-c", str(core), *command], cwd=ROOT, env=env, text=True, **pipes)


@contextmanager
def server(*arguments: str) -> Iterator[tuple[int, psutil.Process]]:
    """`penstock serve` with these arguments, its log in a file: its port, and its process."""
    with TemporaryFile("w+") as log:
        child = pinned(sys.executable, "-m", "penstock", "serve", *arguments, "--port", "0", stdout=log, stderr=log)
        try:
            found = None
            while found is None:
                time.sleep(0.1)
                log.seek(0)
                written = log.read()
                found = re.search(r" is up at http://127\.0\.0\.1:(\d+)", written)
                if child.poll() is not None:
                    raise SystemExit(written)
            yield int(found[1]), psutil.Process(child.pid)
        finally:
            child.terminate()
            child.wait(timeout=60)


def spent(process: psutil.Process) -> float:
    """Processor seconds of a process and its children."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


class Bound:
    """The offline bound of a kind of input, in a child of its own: `script bound KIND` answers each line with a rate."""

    def __init__(self, script: str, kind: str) -> None:
        self.child = pinned(sys.executable, script, "bound", kind, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.plan = self.ask()["plan"]

    def ask(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit("the offline bound failed")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def rate(self) -> Rate:
        assert self.child.stdin is not None
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        answer = self.ask()
        return Rate(answer["wall"], answer["cpu"])

    def close(self) -> None:
        self.child.kill()
        self.child.wait()


def answer_bound(plans: dict[str, Any], run: Callable[[Any], Any], count: int) -> None:
    """The child's side: find the best way of batching, then measure it for each line that is read."""

    def measure(batches: Any) -> Rate:
        wall, cpu = time.perf_counter(), time.process_time()
        for batch in batches:
            run(batch)
        return Rate(count / (time.perf_counter() - wall), count / (time.process_time() - cpu))

    run(next(iter(plans.values()))[0])
    rates = {name: measure(batches) for name, batches in plans.items()}
    near = sorted(rates, key=lambda name: rates[name].cpu)[-3:]
    print(json.dumps({"plan": near[::-1], "all": {name: round(rate.cpu, 1) for name, rate in rates.items()}}), flush=True)
    while sys.stdin.readline():
        best = max((measure(plans[name]) for name in near), key=lambda rate: rate.cpu)
        print(json.dumps({"wall": best.wall, "cpu": best.cpu}), flush=True)


async def load(
    port: int, path: str, body: Callable[[Random], Any], clients: int, seconds: float, process: psutil.Process, each: int = 1
) -> Rate:
    """Requests of so many clients that each wait for their answer; `each` is what one request counts for."""
    random, took = Random(time.time_ns()), []
    end = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < end:
            data = json.dumps(body(random)).encode()
            head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            writer.write(head % (path.encode(), len(data)) + data)
            head = await reader.readuntil(b"\r\n\r\n")
            answer = await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            assert b" 200 " in head[:20], answer
            took.append(time.perf_counter() - began)
        writer.close()

    cpu, began = spent(process), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    wall = time.perf_counter() - began
    return Rate(len(took) * each / wall, len(took) * each / (spent(process) - cpu), sum(took) / len(took))


def shares(name: str, rounds: int, bound: Bound, measured: Callable[[], Rate]) -> None:
    """Bound and server in turns; prints each round, and the share of the medians."""
    offline, served = [bound.rate()], []
    for _ in range(rounds):
        served.append(measured())
        offline.append(bound.rate())
        one = served[-1]
        print(
            f"  {name}: {one.wall:.1f}/s, {one.cpu:.1f} a CPU s; offline {offline[-1].wall:.1f}, {offline[-1].cpu:.1f}",
            flush=True,
        )

    def middle(rates: list[Rate], unit: int) -> float:
        return sorted(rate[unit] for rate in rates)[len(rates) // 2]

    wall, cpu = (middle(served, unit) / middle(offline, unit) for unit in (0, 1))
    mean = f"{middle(served, 0):.1f}/s of {middle(offline, 0):.1f}"
    print(f"{name}: {mean}: share {wall:.2f} by the clock, {cpu:.2f} by processor time; best ways {bound.plan}", flush=True)
