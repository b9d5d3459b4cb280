#!/usr/bin/env python3
"""Rerank through `POST /v1/rerank`: 10 concurrent requests of 16 documents each.

    python bench/rerank_http.py [real] [emulated] [seconds=6] [rounds=3] [model=FOLDER]

real: yes/no logits of the tiny causal LM on one thread, server and engine on processor 0, clients on the last one; beside the
offline bound, which is the same engine on processor 0 with all pairs known beforehand, by the best of one by one and of
every way of batching here. emulated: a device that takes 210 ms for a batch and 2.5 ms for each pair in it, so 250 ms for a
request alone, beside a synchronous service of the same device, which takes one request at a time.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from embed_http import WORDS
from model_http import LAST, Bound, Rate, answer_bound, load, server, shares

import penstock as ps
from penstock.models import Score, ScoreModel

DOCUMENTS, CLIENTS = 16, 10
FIXED, PAIR = 0.210, 0.0025


def document(chance: random.Random) -> str:
    start = chance.randrange(len(WORDS) - 160)
    return " ".join(WORDS[start : start + chance.randint(5, 150)])


def request(chance: random.Random) -> dict[str, Any]:
    query = f"how does a parser handle options {chance.randrange(10**9)}"
    return {
        "model": "tiny",
        "query": query,
        "documents": [document(chance) for _ in range(DOCUMENTS)],
        "return_documents": False,
    }


def device(query: list[str], document: list[str]) -> list[Score]:
    """The emulated device, for a batch."""
    time.sleep(FIXED + PAIR * len(query))
    return [Score(0.5, 1) for _ in query]


@ps.service(on=ps.Thread(1))
def synchronous(query: str, documents: list[str]) -> list[float]:
    """The same device behind a service that takes one request after the other."""
    return [score.value for score in device([query] * len(documents), documents)]


scored = ps.service(device, name="scored", batch=ps.Batch(max_size=256, max_wait=0.02), on=ps.Thread(1))
app = ps.App(synchronous, models=[ScoreModel(name="tiny", score=scored, max_tokens=512)], log=False)


def bound(folder: str) -> None:
    from penstock.engines.source import locate
    from penstock.engines.yes_no import TASK, YesNo

    engine, chance = YesNo(locate(folder), 4096, TASK, 1, None, False), random.Random(0)
    asked = [request(chance) for _ in range(5)]
    pairs = [(each["query"], document) for each in asked for document in each["documents"]]
    ordered = sorted(pairs, key=lambda pair: len(pair[1]))
    ways = {f"{name}{n}": (of, n) for n in (1, 2, 4, 8, 16, 80) for name, of in (("", pairs), ("sorted ", ordered))}
    plans = {name: [of[at : at + n] for at in range(0, len(of), n)] for name, (of, n) in ways.items()}
    answer_bound(plans, lambda batch: engine(*map(list, zip(*batch, strict=True))), len(pairs))


def real(folder: str, rounds: int, seconds: float) -> None:
    beside = Bound(__file__, folder)
    with server("--rerank", f"tiny={folder}") as (port, process):

        def measure(seconds: float = seconds) -> Rate:
            return asyncio.run(load(port, "/v1/rerank", request, CLIENTS, seconds, process, DOCUMENTS))

        measure(2.0)
        shares("rerank, pairs", rounds, beside, measure)
    beside.close()


def emulated(rounds: int, seconds: float) -> None:
    def ask(chance: random.Random) -> dict[str, Any]:
        return {key: value for key, value in request(chance).items() if key in ("query", "documents")}

    with server("bench.rerank_http:app") as (port, process):
        for _ in range(rounds):
            alone = asyncio.run(load(port, "/synchronous", ask, 1, 2.0, process))
            one = asyncio.run(load(port, "/synchronous", ask, CLIENTS, seconds, process))
            ours = asyncio.run(load(port, "/v1/rerank", request, CLIENTS, seconds, process))
            print(
                f"emulated: {alone.mean * 1e3:.0f} ms alone; {CLIENTS} at once: synchronous {one.wall:.2f}/s, mean {one.mean:.2f} s; "
                f"batched {ours.wall:.2f}/s, mean {ours.mean:.2f} s: {ours.wall / one.wall:.2f}x, {ours.mean / one.mean:.2f}x",
                flush=True,
            )


def main() -> None:
    if sys.argv[1:2] == ["bound"]:
        bound(sys.argv[2])
        return
    options = dict(argument.split("=") for argument in sys.argv[1:] if "=" in argument)
    parts = [argument for argument in sys.argv[1:] if "=" not in argument] or ["real", "emulated"]
    seconds, rounds = float(options.get("seconds", 6)), int(options.get("rounds", 3))
    os.sched_setaffinity(0, {LAST})
    if "real" in parts:
        from demo import tiny_lm

        with TemporaryDirectory() as made:
            real(options.get("model") or str(tiny_lm.make(made)), rounds, seconds)
    if "emulated" in parts:
        emulated(rounds, seconds)


if __name__ == "__main__":
    main()
