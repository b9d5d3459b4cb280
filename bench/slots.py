#!/usr/bin/env python3
"""Continuous batching: what penstock adds between two steps and for each token, and how a long start disturbs others.

    python bench/slots.py [--json]

The model is a sleep, which releases the GIL as a device does. Overhead is the time between two steps against the time
in them, and a step's share of the whole against the same model in a bare loop; the CPU time of a token is the loop's thread's own, with readers that only count.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import penstock as ps

PREFILL_UNIT = 20e-6  # seconds that one unit of a start adds to a step
DECODE = 0.004


class Model:
    """A step takes `seconds`, and what it works off of starts."""

    def __init__(self, seconds: float, price: float = 0.0) -> None:
        self.seconds, self.price = seconds, price
        self.left: dict[int, int] = {}
        self.tokens: dict[int, int] = {}
        self.steps = self.full = 0
        self.inside = self.began = self.ended = 0.0

    def books(self) -> dict[str, float]:
        """What the steps since the last time came to."""
        kept = {"steps": self.steps, "inside": self.inside, "whole": self.ended - self.began}
        self.steps, self.inside, self.began = 0, 0.0, 0.0
        return kept

    def add(self, slot: int, units: int, tokens: int) -> int:
        self.left[slot], self.tokens[slot] = units, tokens
        return units

    def step(self, slots: dict[int, int]) -> list[tuple[int, int]]:
        out: list[tuple[int, Any]] = []
        if not any(map(self.tokens.get, slots)):  # nothing is asked for but the books
            return [(slot, item) for slot in slots for item in (self.books(), ps.END)]
        began = time.perf_counter()
        self.began = self.began or began
        units = 0
        for slot, n in slots.items():
            if self.left[slot]:
                units += n
                self.left[slot] -= n
                if self.left[slot]:
                    continue
            self.tokens[slot] -= 1
            out.append((slot, self.tokens[slot]))
            if not self.tokens[slot]:
                out.append((slot, ps.END))
        time.sleep(self.seconds + units * self.price)
        self.steps += 1
        self.ended = time.perf_counter()
        self.inside += self.ended - began
        return out

    def drop(self, slot: int) -> None:
        del self.left[slot], self.tokens[slot]


def service(seconds: float, size: int, price: float = 0.0, place: Any = None) -> Any:
    on = place or ps.Thread()
    return ps.service(Model, seconds, price, name="model", batch=ps.Slots(size), on=on, buffer=256)


async def books(model: Any) -> dict[str, float]:
    found: list[dict[str, float]] = [kept async for kept in model(0, 0)]
    return found[0]


async def count(call: Any) -> int:
    n = 0
    async for _ in call:
        n += 1
    return n


def bare(seconds: float, size: int, steps: int) -> float:
    """Seconds a step of the same model in a loop that does nothing else."""
    model = Model(seconds)
    for slot in range(size):
        model.add(slot, 0, steps + 1)
    plan = dict.fromkeys(range(size), 1)
    for _ in range(steps):
        model.step(plan)
    return (model.ended - model.began) / steps


async def overhead(seconds: float, size: int, tokens: int, place: Any) -> dict[str, Any]:
    model = service(seconds, size, 0.0, place)
    async with ps.Runtime(model):
        await asyncio.gather(*(count(model(0, 20)) for _ in range(size)))
        await books(model)
        cpu = time.thread_time()
        got = sum(await asyncio.gather(*(count(model(0, tokens)) for _ in range(size))))
        cpu = time.thread_time() - cpu
        kept = await books(model)
    steps, inside, whole = kept["steps"], kept["inside"], kept["whole"]
    between, wall = whole - inside, whole / steps
    return {
        "what": f"{seconds * 1e3:g} ms x {size}, in a {type(place).__name__.lower()}",
        "tokens": got,
        "slots_a_step": round(got / steps, 1),
        "overhead_percent": round(100 * between / inside, 1),
        "against_a_bare_loop_percent": round(100 * (wall / bare(seconds, size, 300) - 1), 1),
        "between_steps_us": round(1e6 * between / steps, 1),
        "loop_cpu_us_a_token": round(1e6 * cpu / got, 2),
    }


async def gaps(model: Any, streams: int, tokens: int, prompt: int) -> list[float]:
    found: list[float] = []

    async def read() -> None:
        last = 0.0
        async for _ in model(0, tokens):
            now = time.perf_counter()
            if last:
                found.append(now - last)
            last = now

    tasks = [asyncio.ensure_future(read()) for _ in range(streams)]
    if prompt:
        await asyncio.sleep(tokens * DECODE / 4)
        await count(model(prompt, 1))
    await asyncio.gather(*tasks)
    return sorted(found)


async def prefill() -> dict[str, Any]:
    """64 streams; beside them a start of 50,000 units, which alone takes a second."""
    model = service(DECODE, 65, PREFILL_UNIT)
    async with ps.Runtime(model):
        await gaps(model, 64, 50, 200)
        alone = await gaps(model, 64, 600, 0)
        beside = await gaps(model, 64, 600, 50_000)
    p99 = [round(1e3 * values[int(0.99 * len(values))], 2) for values in (alone, beside)]
    return {"what": "a start of 50,000 units beside 64 streams", "gap_p99_ms_alone": p99[0], "gap_p99_ms_beside": p99[1],
            "ratio": round(p99[1] / p99[0], 2)}  # fmt: skip


async def main() -> list[dict[str, Any]]:
    rows = []
    for place in (ps.Thread(), ps.Process()):
        rows += [await overhead(0.001, 32, 2000, place), await overhead(0.010, 256, 200, place)]
    return [*rows, await prefill()]


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        rows = asyncio.run(main())
    else:
        rows = uvloop.run(main())
    if "--json" in sys.argv:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print("  ".join(f"{name}={value}" for name, value in row.items()))
