#!/usr/bin/env python3
"""Chat streams through HTTP: an emulated engine of 256 slots, 1 ms a step, in a child process; what a token costs the server.

    python bench/chat_stream.py [--streams 8,32,128,256] [--tokens 400] [--json]

The server has a core of its own, the engine and the clients share the other. Each token's text is the number of the step that
made it, so a client sees how many steps its stream had to wait (stalls), besides how long (ms). CPU is the server process's own,
without the engine. What more than a core's worth of tokens asks for, slots wait for their readers: steps a second say so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import psutil
from emulated import Emulated
from one_core import one_core

import penstock as ps
from penstock.models import ChatModel, Incremental


class Counting(Emulated):
    """Gives the number of the step, as a token."""

    def __init__(self) -> None:
        super().__init__(fixed=0.001, decode=0.0, prefill=0.0)
        self.steps = 0

    def add(self, slot: int, prompt: list[int], sampling: dict[str, Any], images: list[bytes]) -> int:  # type: ignore[override]
        return super().add(slot, 1, sampling["max_tokens"])

    def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:
        self.steps += 1
        return [(slot, item if item is ps.END else self.steps) for slot, item in super().step(slots)]


class Numbers:
    """A tokenizer whose tokens are numbers and a space."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [1]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f"{n} " for n in ids)

    def piece(self, token: int) -> bytes:
        return b"%d " % token

    def decoder(self) -> Any:
        return Plain()

    def chat(self, messages: Any, **options: Any) -> list[int]:
        return [1]


class Plain:
    """Every token is readable at once."""

    def push(self, token: int) -> str:
        return f"{token} "

    def flush(self) -> str:
        return ""


class Careful(Numbers):
    """The decoder that any tokenizer can have."""

    def decoder(self) -> Any:
        return Incremental(self.decode)


def model(name: str, tokenizer: Any) -> ChatModel:
    service = ps.service(Counting, name=f"chat-{name}", batch=ps.Slots(256), on=ps.Process(), buffer=64)
    return ChatModel(name=name, generate=service, tokenizer=tokenizer, context=1 << 20)


app = ps.App(models=[model("plain", Numbers()), model("careful", Careful())], log=False)


class Stream:
    """One client: the steps of its tokens and when they came."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.times: list[float] = []

    async def run(self, port: int, tokens: int, name: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": tokens})
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body.encode())
        rest = b""
        while True:
            data = await reader.read(1 << 16)
            now = time.perf_counter()
            found = re.findall(rb'"content":"(\d+) "', rest + data)
            self.steps += map(int, found)
            self.times += [now] * len(found)
            rest = (rest + data).rpartition(b"\n\n")[2]
            if b"[DONE]" in data or not data:
                break
        writer.close()


async def measure(port: int, process: psutil.Process, streams: int, tokens: int, name: str) -> dict[str, Any]:
    clients = [Stream() for _ in range(streams)]
    before, began = sum(process.cpu_times()[:2]), time.perf_counter()
    await asyncio.gather(*(client.run(port, tokens, name) for client in clients))
    cpu, took = sum(process.cpu_times()[:2]) - before, time.perf_counter() - began
    got = sum(len(client.steps) for client in clients)
    assert got == streams * tokens, f"{got} tokens of {streams * tokens} came"
    assert all(a < b for client in clients for a, b in zip(client.steps, client.steps[1:], strict=False)), "out of order"
    steps = [b - a for client in clients for a, b in zip(client.steps, client.steps[1:], strict=False)]
    gaps = sorted(b - a for client in clients for a, b in zip(client.times, client.times[1:], strict=False))
    made = max(c.steps[-1] for c in clients) - min(c.steps[0] for c in clients)
    return {
        "decoder": name,
        "streams": streams,
        "tokens_a_second": round(got / took),
        "steps_a_second": round(made / took),
        "server_cpu_us_a_token": round(1e6 * cpu / got, 1),
        "longest_stall_steps": max(steps),
        "gap_ms_p99": round(1e3 * gaps[int(len(gaps) * 0.99)], 2),
        "gap_ms_max": round(1e3 * gaps[-1], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", default="8,32,128,256")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with one_core("chat_stream:app") as (port, process):
        for name in ("plain", "careful"):
            asyncio.run(measure(port, process, 8, 50, name))
            for streams in map(int, given.streams.split(",")):
                turns = [asyncio.run(measure(port, process, streams, given.tokens, name)) for _ in range(given.turns)]
                found = sorted(turns, key=lambda t: t["server_cpu_us_a_token"])[len(turns) // 2]
                print(json.dumps(found) if given.json else "  ".join(f"{k} {v}" for k, v in found.items()), flush=True)


if __name__ == "__main__":
    main()
