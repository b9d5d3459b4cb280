#!/usr/bin/env python3
"""Two API keys on one emulated replica, one of which sends ten times as much as the other; in virtual time.

    python bench/two_keys.py [--trace TRACE.csv] [--slots 64] [--seconds 600] [--json]

(a) Both backlogged: the share of tokens (prompt + 2 x answer, as they are charged) that each is served, against the
weights. (b) The light key below its share: the p99 of its time to the first token beside the heavy one against alone, and
what one step takes. Lengths are those of a trace (see overload_tokens.py) or, without one, drawn: prompts lognormal with
mean 1,155, answers geometric with mean 211. The replica is that of overload_tokens.py. Nobody has targets here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

from emulated import OnTheLoop, tokens
from overload_tokens import read

import penstock as ps
from penstock.errors import PenstockError
from penstock.policy import AIMD, FairShare
from penstock.sim.loop import VirtualLoop

LIGHT, HEAVY = "light", "heavy"
ITEM = 2.0


def lengths(trace: Path | None, seed: int) -> Iterator[tuple[int, int]]:
    if trace is not None:
        rows = read(trace)
        Random(seed).shuffle(rows)
        yield from cycle([(prompt, answer) for _, prompt, answer in rows])
    random = Random(seed)
    while True:
        yield max(1, int(random.lognormvariate(6.8, 0.71))), 1 + int(random.expovariate(1 / 210))


class Run:
    """One run: `served` tokens and `first` seconds by key."""

    def __init__(self, options: argparse.Namespace, weights: dict[str, float], targets: Any = ()) -> None:
        order = FairShare(weights=weights)
        batch = ps.Slots(options.slots, cost=tokens, item_cost=ITEM)
        self.model = ps.service(OnTheLoop, name="model", on=ps.Inline(), batch=batch, order=order, limit=targets, buffer=10**6)
        self.options = options
        self.served: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.first: dict[str, list[float]] = {LIGHT: [], HEAVY: []}
        self.warm = options.seconds / 12

    def go(self, rates: dict[str, float], seconds: float) -> Run:
        loop = VirtualLoop()
        try:
            loop.run_until_complete(self._main(rates, seconds))
        finally:
            loop.close()
        assert not loop.failures, loop.failures
        return self

    async def _main(self, rates: dict[str, float], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        async with ps.Runtime(self.model, clock=loop.time, watch=False):
            keys = [loop.create_task(self._key(key, rate, seconds)) for key, rate in rates.items()]
            await asyncio.sleep(seconds)
            await asyncio.gather(*keys)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    async def _key(self, key: str, rate: float, seconds: float) -> None:
        loop, random, drawn = asyncio.get_running_loop(), Random(key), lengths(self.options.trace, len(key))
        tasks = []
        while loop.time() < seconds:
            tasks.append(loop.create_task(self._request(key, *next(drawn))))
            await asyncio.sleep(random.expovariate(rate))

    async def _request(self, key: str, prompt: int, answer: int) -> None:
        loop = asyncio.get_running_loop()
        came, first = loop.time(), 0.0
        self.sent[key] += 1
        with ps.budget(tenant=key), contextlib.suppress(PenstockError):
            async for _ in self.model(prompt, answer):
                if not first:
                    first = loop.time()
                    self.first[key].append(first - came)
                if loop.time() > self.warm:
                    self.served[key] += ITEM + (prompt if first == loop.time() else 0)


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument(
        "--light", type=float, nargs="*", default=(0.2, 0.4, 0.8), help="requests a second of the light key in (b)"
    )
    parser.add_argument("--targets", action="store_true", help="time to first token 2 s, 100 ms a token")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    targets = AIMD(ttft=2.0, tpot=0.1) if options.targets else ()
    rows: list[dict[str, Any]] = []
    for weights in ({LIGHT: 1.0, HEAVY: 1.0}, {LIGHT: 3.0, HEAVY: 1.0}, {LIGHT: 1.0, HEAVY: 3.0}):
        run = Run(options, weights, targets).go({LIGHT: 6.0, HEAVY: 60.0}, options.seconds / 4)
        share, due = run.served[LIGHT] / run.served.total(), weights[LIGHT] / sum(weights.values())
        row = {"what": "both backlogged", "weights": "{light:g}:{heavy:g}".format(**weights), "share_of_light": round(share, 4)}
        rows.append(row | {"off_percent": round(100 * (share / due - 1), 1)})
    for weights in ({LIGHT: 1.0, HEAVY: 1.0}, {LIGHT: 1.0, HEAVY: 3.0}):
        for rate in options.light:
            alone = p99(Run(options, weights, targets).go({LIGHT: rate}, options.seconds).first[LIGHT])
            both = Run(options, weights, targets).go({LIGHT: rate, HEAVY: 10 * rate}, options.seconds)
            beside, answered = p99(both.first[LIGHT]), len(both.first[LIGHT]) / both.sent[LIGHT]
            row = {"what": f"light {rate:g}/s, heavy {10 * rate:g}/s", "weights": "{light:g}:{heavy:g}".format(**weights)}
            times = {"p99_alone_s": round(alone, 3), "p99_beside_s": round(beside, 3)}
            rows.append(row | times | {"twice_and_a_step_s": round(2 * alone + 0.1, 3)})
            rows[-1]["answered_percent"] = round(100 * answered, 1)
    for row in rows:
        print(json.dumps(row) if options.json else "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
