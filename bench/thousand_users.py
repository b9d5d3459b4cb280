#!/usr/bin/env python3
"""A thousand users of one server process on a core of its own: each asks, reads the answer, and thinks for 400 ms on average.

    python bench/thousand_users.py [--users 1000] [--think 0.4] [--service 0.05] [--seconds 20] [--json]

The model is emulated: any number of requests at once, `service` seconds each. Users think for exponential times and keep their
connections; the clients run on the other core. Their own lateness (how much later than meant a request was sent) says whether the
figures are the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from chat_stream import Numbers
from one_core import one_core

import penstock as ps
from penstock.models import ChatModel

SERVICE = float(os.environ.get("SERVICE", "0.05"))


@ps.service(name="chat-emulated", limit=ps.Fixed(4096))
async def generate(prompt: list[int], sampling: dict[str, Any], images: list[bytes]) -> AsyncIterator[int]:
    """One token, after its time."""
    await asyncio.sleep(SERVICE)
    yield 1


@ps.service
async def answer(text: str) -> str:
    """The same without a model server around it."""
    await asyncio.sleep(SERVICE)
    return text


app = ps.App(answer, models=[ChatModel(name="emulated", generate=generate, tokenizer=Numbers(), context=100)], log=True)
BODIES = {
    "/answer": {"text": "hello"},
    "/v1/chat/completions": {"model": "emulated", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1},
}


class User(asyncio.Protocol):
    """Asks, waits for the answer, thinks, asks again."""

    def __init__(self, crowd: Crowd, chance: random.Random) -> None:
        self.crowd, self.chance = crowd, chance
        self.buffer, self.asked, self.meant = b"", 0.0, 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.think()

    def think(self) -> None:
        crowd = self.crowd
        self.meant = time.perf_counter() + self.chance.expovariate(1 / crowd.mean)
        crowd.loop.call_later(self.meant - time.perf_counter(), self.ask)

    def ask(self) -> None:
        if self.crowd.over:
            return
        self.asked = time.perf_counter()
        self.transport.write(self.crowd.message)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found or len(body) < int(re.search(rb"content-length: (\d+)", head)[1]):  # type: ignore[index]
            return
        self.buffer, now = b"", time.perf_counter()
        if now > self.crowd.from_:
            self.crowd.took.append(now - self.asked)
            self.crowd.late.append(self.asked - self.meant)
            self.crowd.bad += not head.startswith(b"HTTP/1.1 200")
        self.think()


class Crowd:
    """What all users have in common, and what they found."""

    def __init__(self, path: str, mean: float, seconds: float) -> None:
        body = json.dumps(BODIES[path]).encode()
        self.message = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body)
        self.mean, self.seconds = mean, seconds
        self.took: list[float] = []
        self.late: list[float] = []
        self.bad, self.over, self.from_ = 0, False, 0.0

    async def run(self, port: int, users: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.from_ = time.perf_counter() + 2.0
        made = [
            await self.loop.create_connection(lambda n=n: User(self, random.Random(n)), "127.0.0.1", port)  # type: ignore[misc]
            for n in range(users)
        ]
        await asyncio.sleep(self.seconds + self.from_ - time.perf_counter())
        self.over = True
        for transport, _ in made:
            transport.close()


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--think", type=float, default=0.4)
    parser.add_argument("--service", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with one_core("thousand_users:app", SERVICE=str(given.service)) as (port, process):
        gc.freeze()
        gc.disable()  # the generator should be on time
        for path in BODIES:
            crowd = Crowd(path, given.think, given.seconds)
            before = sum(process.cpu_times()[:2])
            asyncio.run(crowd.run(port, given.users))
            cpu = sum(process.cpu_times()[:2]) - before
            count = len(crowd.took)
            found = {
                "path": path,
                "users": given.users,
                "answers_a_second": round(count / given.seconds),
                "failed": crowd.bad,
                "mean_ms": round(1e3 * sum(crowd.took) / count, 1),
                "p50_ms": round(1e3 * quantile(crowd.took, 0.5), 1),
                "p99_ms": round(1e3 * quantile(crowd.took, 0.99), 1),
                "lateness_p99_ms": round(1e3 * quantile(crowd.late, 0.99), 2),
                "server_cpu_us_a_call": round(1e6 * cpu / (count * (1 + 2 / given.seconds)), 1),
            }
            print(json.dumps(found) if given.json else "  ".join(f"{k} {v}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    main()
