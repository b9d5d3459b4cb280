#!/usr/bin/env python3
"""Row F: MiniLM through `POST /v1/embeddings`, 64 clients with one distinct text each, beside the offline bound.

    python bench/embed_http.py [seconds=6] [rounds=3]

The server, with one thread of the engine, is on processor 0, the clients on the last one. The bound is the same engine on
processor 0 with all texts known beforehand, by the best of one by one and of every way of batching in `offline_embed.py`.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import sysconfig
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model_http import LAST, Bound, answer_bound, load, server, shares

WORDS = re.findall(r"[A-Za-z]{2,}", (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text())

WAYS = ("single", "b8", "b32", "b64", "b8 sorted", "b32 sorted", "b64 sorted", "sum512", "sum1024", "pad1024", "pad2048")


def text(random: Random, kind: str) -> str:
    count = 8 if kind == "short" else int(3 * (200 / 3) ** random.random())
    start = random.randrange(len(WORDS) - count)
    return " ".join(WORDS[start : start + count]) + f" {random.randrange(10**9)}"


def bound(kind: str) -> None:
    from offline_embed import minilm, plans_of

    engine, random = minilm(), Random(0)
    count = 256 if kind == "short" else 80
    texts = [text(random, kind) for _ in range(count)]
    plans = plans_of(texts, lambda text: len(engine.reader.tokenizer.encode(text)))
    answer_bound({name: plans[name] for name in WAYS}, engine, count)


def main() -> None:
    if sys.argv[1:2] == ["bound"]:
        bound(sys.argv[2])
        return
    from demo.app import model_folder

    options = dict(argument.split("=") for argument in sys.argv[1:])
    seconds, rounds = float(options.get("seconds", 6)), int(options.get("rounds", 3))
    for kind in ("short", "mixed"):

        def body(random: Random, kind: str = kind) -> dict[str, Any]:
            return {"model": "model", "input": text(random, kind), "encoding_format": "base64"}

        beside = Bound(__file__, kind)
        with server("--embed", str(model_folder())) as (port, process):
            os.sched_setaffinity(0, {LAST})
            asyncio.run(load(port, "/v1/embeddings", body, 64, 2.0, process))
            shares(kind, rounds, beside, lambda: asyncio.run(load(port, "/v1/embeddings", body, 64, seconds, process)))
        beside.close()


if __name__ == "__main__":
    main()
