#!/usr/bin/env python3
"""One of four remotes gets ten times slower and one begins to answer 500, at 40 % of the healthy capacity.

    python bench/remotes.py [seconds [connections]]

The remotes are penstock servers in child processes; their work is 80 ms of sleep, at most 16 at once, so that two cores are
no limit; `connections` is as many unless given, so that calls wait here and not there. Calls are idempotent and come at
random (Poisson) whatever the answers do. With two remotes out the others are 80 % busy: what p99 grows by is that queue.
Shown are p99 and errors before the fault, in the two seconds after it, and from then on; and what a call costs this process.

    python bench/remotes.py client     # the price of one request, beside aiohttp's and httpx's, to one server
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import penstock as ps

WORK, SLOTS, REMOTES = 0.080, 16, 4
RATE = 0.4 * REMOTES * SLOTS / WORK
state = {"factor": 1.0, "fails": False}


@ps.service(safe=True, limit=ps.Fixed(SLOTS))
async def work(x: int) -> int:
    await asyncio.sleep(WORK * state["factor"])
    if state["fails"]:
        raise RuntimeError("out of order")
    return x


@ps.service
async def fault(factor: float = 1.0, fails: bool = False) -> None:
    state.update(factor=factor, fails=fails)


app = ps.App(work, fault, log=False)


class Remote:
    """One server in a child process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "penstock", "serve", "remotes:app", "--port", "0"]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        self.url = line.split(" at ")[1].split()[0]

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def rank(values: list[float], share: float) -> float:
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


async def row(urls: list[str], seconds: float, connections: int) -> dict[str, Any]:
    """The issue's row."""

    def work(x: int) -> int: ...

    service = ps.service(work, on=ps.Remote(urls, connections=connections), safe=True)
    rng, ended, late = random.Random(0), [], 0.0
    tasks: set[asyncio.Task[None]] = set()

    async with ps.Runtime(service) as runtime:

        async def call(sent: float) -> None:
            try:
                await service(1)
                error = ""
            except Exception as failure:
                error = type(failure).__name__
            ended.append((sent - began, time.perf_counter() - sent, error))

        began, cpu = time.perf_counter(), time.process_time()
        at, faulty = began, False
        while at < began + 3 * seconds:
            at += rng.expovariate(RATE)
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            if not faulty and at > began + seconds:
                faulty = True
                await asyncio.to_thread(_switch, urls)
            late = max(late, time.perf_counter() - at)
            task = asyncio.create_task(call(time.perf_counter()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        cpu = time.process_time() - cpu
        states = runtime.bindings[service].executor.states()  # type: ignore[union-attr]
        retries = runtime.bindings[service].station.retry.spent  # type: ignore[union-attr]
    parts = {"healthy": (1.0, seconds), "first 2 s": (seconds, seconds + 2), "from 2 s on": (seconds + 2, 1e9)}
    shown: dict[str, Any] = {}
    for name, (start, end) in parts.items():
        took = [took for sent, took, _ in ended if start <= sent < end]
        errors = sum(1 for sent, _, error in ended if start <= sent < end and error)
        shown[name] = {
            "calls": len(took),
            "p50_ms": round(rank(took, 0.5) * 1e3, 1),
            "p99_ms": round(rank(took, 0.99) * 1e3, 1),
            "max_ms": round(max(took) * 1e3, 1),
            "errors": errors,
        }
    shown["p99 against healthy"] = round(shown["from 2 s on"]["p99_ms"] / shown["healthy"]["p99_ms"], 2)
    shown["retries"] = retries
    shown["cpu_us_per_call"] = round(cpu / len(ended) * 1e6)
    shown["latest start, ms"] = round(late * 1e3, 1)
    shown["remotes"] = [{"state": s.state, "ejections": s.ejections, "calls": s.calls} for s in states]
    return shown


def _switch(urls: list[str]) -> None:
    for url, body in zip(urls, (b'{"factor": 10}', b'{"fails": true}'), strict=False):
        _post(f"{url}/fault", body)


def _post(url: str, body: bytes) -> None:
    from urllib.request import Request, urlopen

    urlopen(Request(url, body, {"content-type": "application/json"}), timeout=10).close()  # noqa: S310 - our own server


# The client


async def own(url: str, count: int, clients: int) -> None:
    from penstock.executors.remote_client import Server
    from penstock.executors.remote_place import address

    loop = asyncio.get_running_loop()
    server = Server(address(url), loop, time.monotonic, 5.0)

    class Exchange:
        connection: Any = None

        def __init__(self) -> None:
            body = json.dumps({"factor": 1.0}).encode()
            host = server.address.authority.encode()
            head = b"POST /fault HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\nx-request-id: a\r\n" % host
            self.data = head + b"content-length: %d\r\n\r\n%b" % (len(body), body)
            self.answer: asyncio.Future[bytes] = loop.create_future()
            self.parts: list[bytes] = []

        def head(self, status: int, headers: dict[bytes, bytes]) -> None:
            assert status == 200

        def body(self, data: bytes) -> None:
            self.parts.append(data)

        def ended(self) -> None:
            self.answer.set_result(b"".join(self.parts))

        def lost(self, why: str, stale: bool, sent: bool = True) -> None:
            self.answer.set_exception(OSError(why))

    async def client() -> None:
        for _ in range(count // clients):
            exchange = Exchange()
            server.begin(exchange)
            json.loads(await exchange.answer)

    await asyncio.gather(*(client() for _ in range(clients)))
    server.close()


async def by_aiohttp(url: str, count: int, clients: int) -> None:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:

        async def client() -> None:
            headers = {"content-type": "application/json", "x-request-id": "a"}
            for _ in range(count // clients):
                data = json.dumps({"factor": 1.0}).encode()
                async with session.post(f"{url}/fault", data=data, headers=headers) as answer:
                    json.loads(await answer.read())

        await asyncio.gather(*(client() for _ in range(clients)))


async def by_httpx(url: str, count: int, clients: int) -> None:
    import httpx

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(limits=limits) as session:

        async def client() -> None:
            headers = {"content-type": "application/json", "x-request-id": "a"}
            for _ in range(count // clients):
                data = json.dumps({"factor": 1.0}).encode()
                json.loads((await session.post(f"{url}/fault", content=data, headers=headers)).content)

        await asyncio.gather(*(client() for _ in range(clients)))


def price(url: str) -> dict[str, dict[str, list[int]]]:
    """CPU and wall time of one request in this process, several times round."""
    found: dict[str, dict[str, list[int]]] = {}
    for _ in range(4):
        for name, run, count in (("own", own, 4000), ("aiohttp", by_aiohttp, 4000), ("httpx", by_httpx, 800)):
            cpu, wall = time.process_time(), time.perf_counter()
            _run(run(url, count, 16))
            cost = found.setdefault(name, {"cpu_us": [], "wall_us": []})
            cost["cpu_us"].append(round((time.process_time() - cpu) / count * 1e6))
            cost["wall_us"].append(round((time.perf_counter() - wall) / count * 1e6))
    return found


def _run(main: Any) -> Any:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    with ExitStack() as stack:
        if arguments == ["client"]:
            result: Any = price(stack.enter_context(Remote()).url)
        else:
            urls = [stack.enter_context(Remote()).url for _ in range(REMOTES)]
            seconds = float(arguments[0]) if arguments else 10.0
            connections = int(arguments[1]) if len(arguments) > 1 else SLOTS
            result = _run(row(urls, seconds, connections))
    print(json.dumps({**result, "load": round(os.getloadavg()[0], 1)}, indent=1))
