#!/usr/bin/env python3
"""Row D: overload by callers who send no deadline and leave, against one server with default settings.

    python bench/overload.py [--seconds 60] [--model 50x8 | 10x32]     over HTTP, two cores
    python bench/overload.py --virtual                                 in virtual time, a grid of variants

Capacity is what the same server answers to callers in a closed loop who never leave; then the rows follow in order on
that server, so each begins with what the one before it has taught. An answer counts if it comes within its caller's patience and
within the measured time. Recovery is the time from the end of the load until a lone call is answered within 0.25 s. A row whose
generator was late by more than some 50 ms is void: above 4,000 calls a second this one is.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

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


class Connection(asyncio.Protocol):
    """One call at a time; the caller who gives up closes it."""

    def __init__(self, idle: list[Connection]) -> None:
        self.idle = idle
        self.answer: asyncio.Future[int] | None = None
        self.transport: asyncio.Transport | None = None
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
        if len(body) >= length and self.answer is not None:
            self.data = b""
            if not self.answer.done():
                self.answer.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(0)


class Callers:
    """An open loop of calls, or a closed one. `ended` counts outcomes; `inside` the answers that came in time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.loop = asyncio.get_running_loop()
        self.idle: list[Connection] = []
        self.ended: Counter[str] = Counter()
        self.seconds: Counter[int] = Counter()  # answers by the second in which they came
        self.late: list[float] = []

    async def call(self, patience: float) -> int:
        """The status; 0 if the connection broke, -1 if the caller left."""
        connection = None
        while self.idle and connection is None:
            connection = self.idle.pop()
            connection = connection if connection.transport is not None else None
        if connection is None:
            _, connection = await self.loop.create_connection(lambda: Connection(self.idle), "127.0.0.1", self.port)
        assert connection.transport is not None
        answer = connection.answer = self.loop.create_future()
        connection.transport.write(REQUEST)
        timer = self.loop.call_later(patience, lambda: answer.done() or answer.set_result(-1))
        status = await answer
        timer.cancel()
        if status == -1 and connection.transport is not None:
            connection.transport.close()
        elif status:
            self.idle.append(connection)
        return status

    async def one(self, due: float, patience: float, start: float) -> None:
        self.late.append(self.loop.time() - due)
        try:
            status = await self.call(patience)
        except OSError:
            status = 0
        self.ended["left" if status == -1 else str(status)] += 1
        if status == 200:
            self.seconds[int(self.loop.time() - start)] += 1

    async def poisson(self, rate: float, patience: Callable[[], float], seconds: float, random: Random) -> None:
        start = due = self.loop.time()
        tasks: set[asyncio.Task[None]] = set()
        while (due := due + random.expovariate(rate)) < start + seconds:
            if due > self.loop.time():
                await asyncio.sleep(due - self.loop.time())
            task = asyncio.ensure_future(self.one(due, patience(), start))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def bursts(self, size: int, patience: Callable[[], float], seconds: float) -> None:
        start = self.loop.time()
        tasks: list[asyncio.Task[None]] = []
        for n in range(int(seconds)):
            await asyncio.sleep(max(0.0, start + n - self.loop.time()))
            tasks += [asyncio.ensure_future(self.one(start + n, patience(), start)) for _ in range(size)]
        await asyncio.gather(*tasks)

    async def closed(self, callers: int, seconds: float) -> float:
        """Answers each second, after a second of warming up."""
        start, answers = self.loop.time(), 0

        async def forever() -> None:
            nonlocal answers
            while self.loop.time() < start + 1 + seconds:
                status = await self.call(1e6)
                answers += status == 200 and start + 1 <= self.loop.time() < start + 1 + seconds

        await asyncio.gather(*(forever() for _ in range(callers)))
        return answers / seconds

    async def recovery(self) -> float:
        start = self.loop.time()
        while await self.call(0.25) != 200:
            await asyncio.sleep(0.05)
            assert self.loop.time() < start + 30, "it does not recover"
        return self.loop.time() - start


async def row(port: int, name: str, seconds: float, against: float, load: Callable[[Callers], object]) -> None:
    callers = Callers(port)
    await load(callers)  # type: ignore[misc]
    recovery = await callers.recovery()
    inside = [callers.seconds[second] for second in range(int(seconds))]
    late = sorted(callers.late)[int(0.99 * len(callers.late))]
    share = sum(inside) / seconds / against
    print(
        f"| {name} | {sum(inside) / seconds:.1f}/s | {share:.1%} | {min(inside) / against:.1%} | {recovery:.2f} s | "
        f"{late * 1e3:.0f} ms | {dict(sorted(callers.ended.items()))} |",
        flush=True,
    )
    await asyncio.sleep(1.0)


async def rows(port: int, model: str, seconds: float) -> None:
    cost, size = MODELS[model]
    random = Random(1)
    await Callers(port).closed(2, 1.0)
    capacity = await Callers(port).closed(6 * size, 5.0)
    print(f"\nmodel {model}: {size / cost:.0f}/s ideal, {capacity:.1f}/s in a saturated closed loop\n")
    print("| callers | inside | of capacity | worst second | recovery | generator late p99 | ends |")
    print("|---|---|---|---|---|---|---|")
    for patience in (1.0, 0.3, 3.0):
        for factor in (2, 10) if model == "50x8" else (2,):
            name = f"{factor}x, {patience:g} s"
            steady = lambda c, f=factor, p=patience: c.poisson(f * capacity, lambda: p, seconds, random)  # noqa: E731
            await row(port, name, seconds, capacity, steady)
    size = int(0.625 * capacity)
    for early in (0.0, 0.02):
        leave = lambda early=early: 0.05 * random.random() if random.random() < early else 1.0  # noqa: E731
        name = f"bursts of {size} each second, 1 s, {early:.0%} leave within 50 ms (share of the calls)"
        await row(port, name, seconds, size, lambda c, leave=leave: c.bursts(size, leave, seconds))
    await row(
        port,
        "2x, exponential with mean 2 s",
        seconds,
        capacity,
        lambda c: c.poisson(2 * capacity, lambda: random.expovariate(0.5), seconds, random),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--virtual", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", choices=sorted(MODELS), action="append")
    parser.add_argument("--port", type=int, default=8191)
    options = parser.parse_args()
    if options.virtual:
        import overload_virtual

        overload_virtual.main()
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the generator on the last core, the server on the first
    for model in options.model or ["50x8"]:
        here = str(Path(__file__).parent)
        paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "penstock", "serve", "overload:app", "--port", str(options.port)]
        environment = {**os.environ, "OVERLOAD_MODEL": model, "PYTHONPATH": paths}
        server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, preexec_fn=_first_core)
        try:
            asyncio.run(_measure(options.port, model, options.seconds))
        finally:
            server.terminate()
            server.wait(40)


def _first_core() -> None:
    os.sched_setaffinity(0, {min(range(os.cpu_count() or 1))})


async def _measure(port: int, model: str, seconds: float) -> None:
    for _ in range(100):
        try:
            if await Callers(port).call(1.0) == 200:
                break
        except OSError:
            await asyncio.sleep(0.1)
    await rows(port, model, seconds)


if __name__ == "__main__":
    try:
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    except ImportError:
        pass
    main()
