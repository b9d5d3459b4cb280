#!/usr/bin/env python3
"""Chat on the tiny Qwen3: ways of batching offline, the service in this process and in a child, and streams over HTTP.

    python bench/chat.py [--rounds 3] [--mix] [--model FOLDER] [--only WAY,WAY] [--json]

32 requests, prompts of 8 to 120 tokens, greedy, 48 tokens each (with --mix 8, 16, 32 or 128), every way with the same
float32 model on one thread, all inputs known beforehand. Ways take turns, so what else the machine does meets all of
them alike. A child's CPU time is its own, without the process that reads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
N = 32


def requests(mix: bool) -> list[tuple[list[int], int]]:
    chance = random.Random(0)
    prompts = [[chance.randrange(300, 4000) for _ in range(chance.randint(8, 120))] for _ in range(N)]
    return [(prompt, chance.choice([8, 16, 32, 128]) if mix else 48) for prompt in prompts]


# Offline


class Offline:
    """transformers' ways, and ours without queues, threads or processes."""

    def __init__(self, folder: Path, asked: list[tuple[list[int], int]]) -> None:
        import torch
        import transformers

        from penstock.engines.writing import Writing

        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()
        self.folder, self.asked = folder, asked
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.writing = Writing(folder, context=1024, stops=frozenset(), dtype=None, replicas=1, pickles=False)

    def run(self, way: str) -> tuple[float, float]:
        """Seconds, and CPU seconds of this thread."""
        began, used = time.perf_counter(), time.thread_time()
        getattr(self, way.replace(" ", "_"))()
        return time.perf_counter() - began, time.thread_time() - used

    def one_by_one(self) -> None:
        self._static(1)

    def static_16(self) -> None:
        self._static(16)

    def static_32(self) -> None:
        self._static(32)

    def _static(self, size: int) -> None:
        import torch

        for at in range(0, N, size):
            part = self.asked[at : at + size]
            longest, tokens = max(len(prompt) for prompt, _ in part), max(count for _, count in part)
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in part])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in part])
            self.model.generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    def transformers_cb(self) -> None:
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        how = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=128)
        sizes = ContinuousBatchingConfig(page_size=64, num_blocks=512, max_batch_tokens=512)
        manager = self.model.init_continuous_batching(generation_config=how, continuous_batching_config=sizes)
        manager.start()
        for prompt, count in self.asked:
            manager.add_request(prompt, max_new_tokens=count, streaming=True, eos_token_id=-1)
        done = 0
        while done < N:
            found = manager.get_result(timeout=1)
            done += found is not None and found.is_finished()
        manager.stop(block=True)
        manager.destroy()

    def slots(self) -> None:
        self._slots(64)

    def slots_whole_prompts(self) -> None:
        self._slots(1 << 30)

    def _slots(self, pieces: int) -> None:
        """A loop around the engine; prompts in pieces of so many tokens a step."""
        import penstock as ps

        writing = self.writing
        left: dict[int, int] = {}
        for slot, (prompt, count) in enumerate(self.asked):
            left[slot] = writing.add(slot, prompt, {"max_tokens": count, "temperature": 0, "ignore_eos": True})
        while left:
            plan, room = {}, pieces
            for slot, units in left.items():
                if units == 0:
                    plan[slot] = 1
                elif room > 0:
                    plan[slot] = min(units, room)
                    left[slot] -= plan[slot]
                    room -= plan[slot]
            for slot, item in writing.step(plan):
                if item is ps.END:
                    writing.drop(slot)
                    del left[slot]


# Served


class Served:
    """The service, called in this process and over HTTP; the model in a child process."""

    def __init__(self, folder: Path, asked: list[tuple[list[int], int]]) -> None:
        import penstock as ps
        from penstock.engines import chat

        self.asked = asked
        self.model = chat(folder, name="tiny", on=ps.Process(threads=1), context=1024, slots=N)
        self.app = ps.App(models=[self.model], log=False)

    async def rounds(self, ways: list[str], count: int, offline: Offline | None) -> list[tuple[str, float, float]]:
        """(way, seconds, the model's CPU seconds), a round after the other."""
        import psutil

        from penstock.http.serve import serving

        found = []
        async with serving(self.app, "127.0.0.1", 0) as server:
            [child] = psutil.Process().children()
            client = await asyncio.create_subprocess_exec(
                sys.executable,
                __file__,
                "--client",
                str(server.port),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            for way in ways * count:
                if way in OFFLINE:
                    assert offline is not None
                    found.append((way, *await asyncio.to_thread(offline.run, way)))
                    continue
                before = sum(child.cpu_times()[:2])
                took = await (self.in_process() if way == "in process" else self.over_http(client))
                found.append((way, took, sum(child.cpu_times()[:2]) - before))
            client.kill()
            await client.wait()
        return found

    async def over_http(self, client: asyncio.subprocess.Process) -> float:
        """The clients are in a process of their own, and say how long it took from the first request to the last end."""
        assert client.stdin and client.stdout
        client.stdin.write(json.dumps(self.asked).encode() + b"\n")
        tokens, took = json.loads(await client.stdout.readline())
        assert tokens == sum(count for _, count in self.asked)
        return float(took)

    async def in_process(self) -> float:
        async def one(prompt: list[int], count: int) -> None:
            call = self.model.generate(prompt, {"max_tokens": count, "temperature": 0, "ignore_eos": True}, [])
            assert len([token async for token in call]) == count

        began = time.perf_counter()
        await asyncio.gather(*(one(prompt, count) for prompt, count in self.asked))
        return time.perf_counter() - began


async def client(port: int, asked: list[tuple[list[int], int]]) -> int:
    """All at once over plain sockets; counts tokens by usage, and sees that every stream ends."""

    async def one(prompt: list[int], count: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = {"model": "tiny", "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True}}  # fmt: skip
        raw = json.dumps(body).encode()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
                     b"content-length: %d\r\n\r\n" % len(raw) + raw)  # fmt: skip
        text = await reader.read(-1)
        writer.close()
        assert b"data: [DONE]" in text, text[-500:]
        return int(text.rpartition(b'"completion_tokens":')[2].split(b",")[0].rstrip(b"}"))

    return sum(await asyncio.gather(*(one(prompt, count) for prompt, count in asked)))


# The whole

OFFLINE = ("one by one", "static 16", "static 32", "transformers cb", "slots", "slots whole prompts")
SERVED = ("in process", "http")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mix", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--only", default=",".join(OFFLINE + SERVED))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--client", type=int)
    given = parser.parse_args()
    if given.client:
        for line in sys.stdin:
            began = time.perf_counter()
            print(json.dumps([asyncio.run(client(given.client, json.loads(line))), time.perf_counter() - began]), flush=True)
        return
    with tempfile.TemporaryDirectory() as made:
        folder = given.model
        if folder is None:
            from demo import tiny_lm

            folder = tiny_lm.make(Path(made) / "tiny")
        rows = measure(folder, requests(given.mix), given.only.split(","), given.rounds)
    print(json.dumps(rows, indent=1) if given.json else table(rows))


def measure(folder: Path, asked: list[tuple[list[int], int]], ways: list[str], rounds: int) -> list[dict[str, Any]]:
    tokens = sum(count for _, count in asked)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    offline = Offline(folder, asked) if set(ways) & set(OFFLINE) else None
    found = asyncio.run(Served(folder, asked).rounds(ways, rounds + 1, offline))
    for way, took, used in found[len(ways) :]:  # the first round warms up
        seconds[way].append(took)
        cpu[way].append(used)
    return [
        {
            "way": way,
            "tokens_s": round(tokens / statistics.median(seconds[way])),
            "best_tokens_s": round(tokens / min(seconds[way])),
            "tokens_cpu_s": round(tokens / statistics.median(cpu[way])),
        }
        for way in ways
    ]


def table(rows: list[dict[str, Any]]) -> str:
    return "\n".join("  ".join(f"{name}={value}" for name, value in row.items()) for row in rows)


if __name__ == "__main__":
    main()
