"""The offline bound of row F: what the engine of the demo does with all texts at hand, no server and no queue.

usage: python bench/offline_embed.py [threads=1] [cpus=0,1] [n=192] [rounds=3] [kind=short,mixed]

Every plan embeds the same texts, tokenising included, from strings to vectors. `b32` cuts them in order of arrival,
`b32 sorted` in order of length, `sum512` by the sum of tokens, `pad2048` by count x longest (both by length, as a
server with all the work in its queue could); `raw` plans go through the graph as one run, the others through the
engine's own runs. Rounds take the plans in turn; the best round counts, so that a neighbour's burst does not. Prints
one JSON line per plan and one for the best of each kind. 'short' texts are 8 words, 'mixed' ones 3 to 200.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.app import model_folder
from penstock.engines.embedding import Embedder
from penstock.engines.embedding_config import read_config
from penstock.engines.source import locate

Batches = list[list[str]]


def minilm() -> Embedder:
    source = locate(model_folder())
    return Embedder(source, read_config(source), "onnx", 1, None, False)


def texts_of(kind: str, n: int, seed: int = 0) -> list[str]:
    """The texts of row F: words of the standard library's argparse.py, cut at random places."""
    source = Path(sysconfig.get_paths()["stdlib"]) / "argparse.py"
    words = re.findall(r"[A-Za-z]{2,}", source.read_text())
    rnd = random.Random(seed)

    def text(k: int) -> str:
        i = rnd.randrange(len(words) - k)
        return " ".join(words[i : i + k])

    return [text(8 if kind == "short" else int(3 * (200 / 3) ** rnd.random())) for _ in range(n)]


def chunks(texts: list[str], size: int) -> Batches:
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def budget(texts: list[str], tokens: Callable[[str], int], most: int, padded: bool) -> Batches:
    """Consecutive texts of at most `most` tokens, counted as they are or as count x longest; one is always legal."""
    batches: Batches = [[]]
    total = longest = 0
    for text in texts:
        k = tokens(text)
        longest, total = max(longest, k), total + k
        if batches[-1] and (longest * (len(batches[-1]) + 1) if padded else total) > most:
            batches.append([])
            longest = total = k
        batches[-1].append(text)
    return batches


def plans_of(texts: list[str], tokens: Callable[[str], int]) -> dict[str, Batches]:
    by_length = sorted(texts, key=tokens)
    plans = {"single": chunks(texts, 1)}
    for size in (8, 16, 32, 64):
        plans[f"b{size}"] = chunks(texts, size)
        plans[f"b{size} sorted"] = chunks(by_length, size)
    for most in (128, 256, 512, 1024, 2048):
        plans[f"sum{most}"] = budget(by_length, tokens, most, padded=False)
        plans[f"pad{most}"] = budget(by_length, tokens, most, padded=True)
    return plans


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "cpus" in options:
        os.sched_setaffinity(0, {int(cpu) for cpu in options["cpus"].split(",")})
    threads, n, rounds = (int(options.get(k, d)) for k, d in (("threads", 1), ("n", 192), ("rounds", 3)))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    started = time.perf_counter()
    engine = minilm()
    encoder = engine.encoder
    load = time.perf_counter() - started
    settings = {"threads": threads, "cpus": sorted(os.sched_getaffinity(0)), "n": n, "load_s": round(load, 2)}
    run_whole = 1 << 30
    for kind in options.get("kind", "short,mixed").split(","):
        texts = texts_of(kind, n)
        plans = plans_of(texts, lambda text: len(engine.reader.tokenizer.encode(text)))
        variants = [(name, name, encoder.run_tokens) for name in plans]
        variants += [(name + " raw", name, run_whole) for name in plans if name != "single"]
        best: dict[str, tuple[float, float]] = {}
        own = encoder.run_tokens
        for _ in range(rounds):
            for label, name, encoder.run_tokens in variants:
                wall, cpu = time.perf_counter(), time.process_time()
                for batch in plans[name]:
                    engine(batch)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                old = best.get(label, (wall, cpu))
                best[label] = min(old[0], wall), min(old[1], cpu)
        encoder.run_tokens = own
        rates = {label: {"per_s": round(n / w, 1), "per_cpu_s": round(n / c, 1)} for label, (w, c) in best.items()}
        for label, rate in rates.items():
            print(json.dumps({"kind": kind, "plan": label, **rate}), flush=True)
        for unit in ("per_s", "per_cpu_s"):
            top = max(rates, key=lambda label: rates[label][unit])
            line = {"kind": kind, "best_by": unit, "plan": top, **rates[top], "single": rates["single"][unit]}
            print(json.dumps({**line, **settings}), flush=True)


if __name__ == "__main__":
    main()
