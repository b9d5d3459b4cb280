#!/usr/bin/env python3
"""Overload of a language model: a trace of requests on one emulated replica, in virtual time, through the real runtime.

    python bench/overload_tokens.py TRACE.csv [--load 1.6] [--ttft 2] [--tpot 0.1] [--seconds S] [--json]

TRACE is an Azure LLM inference trace (AzurePublicDataset: TIMESTAMP, ContextTokens, GeneratedTokens), or $PENSTOCK_TRACE.
Load 1 is half of the conversation trace's own rate, 2.77 requests a second, which the replica can just serve; arrivals keep
their order and relative gaps. Good is a request whose first token came within `ttft` seconds of its arrival and whose
tokens after it took `tpot` seconds each on average. Rows without targets end what has waited for two seconds. The
scheduler, the slots and their step planning are the real ones; only the clock and the model are emulated.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from emulated import OnTheLoop, tokens

import penstock as ps
from penstock.errors import PenstockError
from penstock.policy import AIMD, Fixed
from penstock.sim.loop import VirtualLoop

RATE = 2.77  # requests a second at load 1
FIXED = (32, 48, 64, 80, 96, 128)

Row = tuple[float, int, int]  # seconds, prompt tokens, answer tokens


def read(path: Path) -> list[Row]:
    with path.open() as file:
        rows = [
            (datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(file)
        ]
    return [(at - rows[0][0], prompt, max(1, answer)) for at, prompt, answer in rows]


@dataclass
class Result:
    name: str
    offered: int = 0
    good: int = 0
    late_first: int = 0
    late_pace: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        share = 100 / max(1, self.offered)
        return {
            "limit": self.name,
            "requests": self.offered,
            "good_percent": round(share * self.good, 1),
            "late_first_percent": round(share * self.late_first, 1),
            "late_pace_percent": round(share * self.late_pace, 1),
            "refused_percent": round(share * self.errors.total(), 1),
            "tokens_a_second": round(self.tokens / max(self.seconds, 1e-9), 1),
        }


async def replay(result: Result, rows: list[Row], targets: tuple[float, float], **options: Any) -> None:
    loop = asyncio.get_running_loop()
    model = ps.service(OnTheLoop, name="model", on=ps.Inline(), buffer=1_000_000, **options)
    ttft, tpot = targets

    async def request(prompt: int, answer: int) -> None:
        came, first, count = loop.time(), 0.0, 0
        result.offered += 1
        try:
            async for _ in model(prompt, answer):
                first = first or loop.time()
                count += 1
        except PenstockError as error:
            result.errors[type(error).__name__] += 1
            return
        soon = first - came <= ttft
        fast = count < 2 or (loop.time() - first) / (count - 1) <= tpot
        result.good += soon and fast
        result.late_first += not soon
        result.late_pace += not fast
        result.tokens += count

    async with ps.Runtime(model, clock=loop.time, watch=False), asyncio.TaskGroup() as group:
        for at, prompt, answer in rows:
            await asyncio.sleep(max(0.0, at - loop.time()))
            group.create_task(request(prompt, answer))
    result.seconds = loop.time()


def measure(name: str, rows: list[Row], targets: tuple[float, float], **options: Any) -> Result:
    result, loop = Result(name), VirtualLoop()
    try:
        loop.run_until_complete(replay(result, rows, targets, **options))
    finally:
        loop.close()
    assert not loop.failures, loop.failures
    return result


def variants(ttft: float, tpot: float, fixed: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    plain = {"batch": ps.Slots(256, budget=512), "start_timeout": 2.0}
    made: dict[str, dict[str, Any]] = {"none": {**plain, "limit": ()}}
    made |= {f"fixed {n}": {**plain, "limit": Fixed(n)} for n in fixed}
    made["targets, 512 a step"] = {"batch": ps.Slots(256, budget=512, cost=tokens), "limit": AIMD(ttft=ttft, tpot=tpot)}
    made["targets"] = {"batch": ps.Slots(256, cost=tokens), "limit": AIMD(ttft=ttft, tpot=tpot)}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?", type=Path, default=os.environ.get("PENSTOCK_TRACE"))
    parser.add_argument("--load", type=float, default=1.6)
    parser.add_argument("--ttft", type=float, default=2.0)
    parser.add_argument("--tpot", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of arrivals (default: the whole trace)")
    parser.add_argument("--fixed", type=int, nargs="*", default=FIXED, help="limits to compare with")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.trace is None:
        parser.error("name a trace, or set PENSTOCK_TRACE")
    rows = read(options.trace)
    scale = len(rows) / rows[-1][0] / (RATE * options.load)
    rows = [(at * scale, prompt, answer) for at, prompt, answer in rows if at * scale <= options.seconds]
    targets = options.ttft, options.tpot
    for name, settings in variants(*targets, tuple(options.fixed)).items():
        began = time.perf_counter()
        row = measure(name, rows, targets, **settings).row() | {"wall_s": round(time.perf_counter() - began)}
        print(json.dumps(row) if options.json else "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
