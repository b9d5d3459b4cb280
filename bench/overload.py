#!/usr/bin/env python3
"""Row D: overload by callers who send no deadline and leave, against one server with default settings.

    python bench/overload.py [--seconds 60] [--model 50x8 | 10x32]     over HTTP, two cores
    python bench/overload.py --virtual                                 in virtual time, a grid of variants

Capacity is what the same server answers to callers in a closed loop who never leave; then the rows follow in order on
that server, so each begins with what the one before it has taught. An answer counts if it comes within its caller's patience and
within the measured time. Recovery is the time from when the last caller was answered or left until a lone call is answered within
0.25 s. `late` is how late the calls were begun, at the 99th percentile: a row in which that is more than some 50 ms is void.
`busy` is how much of a core the generator used, and the server.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from callers import Callers

import penstock as ps

MODELS = {"50x8": (0.050, 8), "10x32": (0.010, 32)}
BODY = b'{"x":[1.0]}'
CALL = b"POST /model HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
REQUEST = CALL % (len(BODY), BODY)


class Model:
    """A blocking model: the same time whatever the size of the batch."""

    def __init__(self, cost: float) -> None:
        self.cost = cost

    def __call__(self, xs: list[list[float]]) -> list[dict[str, float]]:
        time.sleep(self.cost)
        return [{"y": sum(x)} for x in xs]


if "OVERLOAD_MODEL" in os.environ:
    COST, SIZE = MODELS[os.environ["OVERLOAD_MODEL"]]
    app = ps.App(ps.service(Model, COST, name="model", batch=ps.Batch(max_size=SIZE, max_wait=0.005)))


class Served:
    """The server under test, its callers, and what it can give."""

    def __init__(self, port: int, model: str) -> None:
        here = str(Path(__file__).parent)
        paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "penstock", "serve", "overload:app", "--port", str(port)]
        environment = {**os.environ, "OVERLOAD_MODEL": model, "PYTHONPATH": paths}
        self.port = port
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, preexec_fn=_first_core)
        self.stat = os.open(f"/proc/{self.process.pid}/stat", os.O_RDONLY)
        self.capacity = 0.0

    def callers(self) -> Callers:
        return Callers(self.port, REQUEST)

    def cpu(self) -> float:
        """Seconds of it that the server has used."""
        fields = os.pread(self.stat, 4096, 0).rpartition(b") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def measure(self, size: int) -> float:
        """Capacity, when it is up."""
        first = self.callers()
        while not first.answers(1.0):
            time.sleep(0.1)
        first.closed(2, 1)
        first.close()
        crowd = self.callers()
        self.capacity = crowd.closed(6 * size, 5)
        crowd.close()
        return self.capacity

    def row(self, name: str, seconds: int, against: float, load: Callable[[Callers], None]) -> None:
        callers = self.callers()
        began, own, server = time.monotonic(), time.process_time(), self.cpu()
        load(callers)
        took = time.monotonic() - began
        busy = f"{(time.process_time() - own) / took:.0%}, {(self.cpu() - server) / took:.0%}"
        ends = dict(sorted(callers.ended.items()))
        inside = [callers.seconds[second] for second in range(seconds)]
        recovery = callers.recovery()
        callers.close()
        late = sorted(callers.late)[int(0.99 * len(callers.late))]
        rate = sum(inside) / seconds
        print(
            f"| {name} | {rate:.1f}/s | {rate / against:.1%} | {min(inside) / against:.1%} | {recovery:.2f} s | "
            f"{late * 1e3:.0f} ms | {busy} | {ends} |",
            flush=True,
        )
        time.sleep(1.0)


def rows(served: Served, model: str, seconds: int) -> None:
    cost, size = MODELS[model]
    random = Random(1)
    capacity = served.measure(size)
    print(f"\nmodel {model}: {size / cost:.0f}/s ideal, {capacity:.1f}/s in a saturated closed loop\n")
    print("| callers | inside | of capacity | worst second | recovery | late | busy: generator, server | ends |")
    print("|---|---|---|---|---|---|---|---|")
    for patience in (1.0, 0.3, 3.0):
        for factor in (2, 10):
            name = f"{factor}x, {patience:g} s"
            steady = lambda c, f=factor, p=patience: c.poisson(f * capacity, lambda: p, seconds, random)  # noqa: E731
            served.row(name, seconds, capacity, steady)
    many = int(0.625 * capacity)
    for early in (0.0, 0.02):
        leave = lambda early=early: 0.05 * random.random() if random.random() < early else 1.0  # noqa: E731
        name = f"bursts of {many} each second, 1 s, {early:.0%} leave within 50 ms (share of the calls)"
        served.row(name, seconds, many, lambda c, leave=leave: c.bursts(many, leave, seconds))
    drawn = lambda c: c.poisson(2 * capacity, lambda: random.expovariate(0.5), seconds, random)  # noqa: E731
    served.row("2x, exponential with mean 2 s", seconds, capacity, drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--virtual", action="store_true")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--model", choices=sorted(MODELS), action="append")
    parser.add_argument("--port", type=int, default=8191)
    options = parser.parse_args()
    if options.virtual:
        import overload_virtual

        overload_virtual.main()
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the generator on the last core, the server on the first
    for model in options.model or ["50x8"]:
        served = Served(options.port, model)
        try:
            rows(served, model, options.seconds)
        finally:
            served.process.terminate()
            served.process.wait(40)


def _first_core() -> None:
    os.sched_setaffinity(0, {min(range(os.cpu_count() or 1))})


if __name__ == "__main__":
    main()
