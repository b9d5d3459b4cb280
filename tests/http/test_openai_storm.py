"""A storm over real sockets: clients that leave at every phase, read slowly or send garbage, engines that die and hang.

Whatever happens: each request that was taken has one end, nothing is held afterwards, and no text is lost, doubled or out of
order, and memory is what it was. The seed is printed; `PENSTOCK_ENDPOINT_SEEDS` is how many there are after the first two.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
import speaking

import penstock as ps
from penstock.http.serve import serving
from penstock.models import ChatModel

SEEDS = int(os.environ.get("PENSTOCK_ENDPOINT_SEEDS", "2"))
WARM = 2
WINDOWS = {"list", "tuple", "TimerHandle", "Context"}  # the last minute's times, and timers that were cancelled in it
CALLS = 60
WORDS = ("pen", "stöck", "猫", "🦜", "water", "gate", "flow", "\\u0000", "né")


class Mortal(speaking.Parrot):
    """A parrot in a process of its own, which some words kill, and some stop for ever."""

    def add(self, slot: int, prompt: list[int], sampling: dict[str, Any], images: list[bytes]) -> int:
        units = super().add(slot, prompt, sampling, images)
        said = bytes(token for token in self.left[slot][:5] if 0 <= token < 256)
        if said.startswith(b"DIE"):
            os._exit(7)
        if said.startswith(b"HANG"):
            self.hangs = True
        return units

    hangs = False

    def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:
        while self.hangs:
            time.sleep(0.1)  # until the watchdog kills this process
        time.sleep(0.001)
        return super().step(slots)


def model() -> ChatModel:
    place = ps.Process(max_restarts=1000)
    service = ps.service(Mortal, name="chat-mortal", batch=ps.Slots(4), on=place, buffer=8, progress_timeout=0.5)
    return ChatModel(
        name="mortal", generate=service, tokenizer=speaking.Bytes(), context=1 << 16, stops=frozenset({speaking.END_OF_TURN})
    )


class Storm:
    """One seed: what was sent, and what came back."""

    def __init__(self, seed: int, port: int) -> None:
        self.chance = random.Random(seed)
        self.port = port
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self) -> None:
        calls = [self.call(n, self.chance.getrandbits(40)) for n in range(CALLS)]
        for n in range(3):
            calls.append(self.call(CALLS + n, self.chance.getrandbits(40), ("DIE", "HANG", "DIE")[n]))
        self.chance.shuffle(calls)
        await asyncio.wait_for(asyncio.gather(*calls), 100)

    async def call(self, n: int, seed: int, order: str = "") -> None:
        chance = random.Random(seed)
        await asyncio.sleep(chance.random() * 3)
        text = order or " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, 60)))
        stream = chance.random() < 0.8
        body = {"messages": [{"role": "user", "content": text}], "stream": stream}
        if order:
            body["max_tokens"] = 5
        data = json.dumps(body, ensure_ascii=chance.random() < 0.5).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-request-id: call-%d\r\nconnection: close\r\n" % n
        message = head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)
        way = (
            "stays" if order else chance.choice(("stays", "stays", "slow", "garbage", "cut", "leaves", "leaves late", "resets"))
        )
        self.seen[way] += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            if way == "garbage":
                writer.write(chance.randbytes(chance.randint(1, 300)))
                await self._all(reader)
                return
            if way == "cut":
                writer.write(message[: chance.randrange(len(message))])
                await writer.drain()
                return
            writer.write(message)
            if way == "leaves":
                await asyncio.sleep(chance.random() * 0.05)
                return
            if way in ("leaves late", "resets"):
                got = await reader.read(chance.randint(1, 4000))
                self._prefix(n, got, text)
                if way == "resets":
                    writer.transport.abort()
                return
            self._judge(n, await self._all(reader, chance if way == "slow" else None), text, stream, bool(order))
        except (ConnectionError, asyncio.IncompleteReadError):
            self.seen["connection lost"] += 1
        finally:
            writer.close()

    async def _all(self, reader: asyncio.StreamReader, slow: random.Random | None = None) -> bytes:
        out = b""
        while data := await reader.read(200 if slow else 1 << 16):
            out += data
            if slow and slow.random() < 0.2:
                await asyncio.sleep(slow.random() * 0.02)
        return out

    def _prefix(self, n: int, got: bytes, text: str) -> None:
        said, _ = spoken(got)
        if not text.startswith(said):
            self.wrong.append(f"call {n} was told {said!r}, which is no beginning of {text!r}")

    def _judge(self, n: int, got: bytes, text: str, stream: bool, ordered: bool) -> None:
        status = int(got[9:12])
        self.seen[f"status {status}"] += 1
        if status == 200 and stream:
            said, done = spoken(got)
            self.seen["done" if done else "broken"] += 1
            if (said != text and not ordered) if done else not text.startswith(said):
                self.wrong.append(f"call {n} was told {said!r}, not {text!r}")
        elif status == 200:
            found = json.loads(got.partition(b"\r\n\r\n")[2])["choices"][0]
            if found["message"]["content"] != text and not ordered:
                self.wrong.append(f"call {n} was told {found!r}, not {text!r}")
        elif status not in (429, 503, 504):
            self.wrong.append(f"call {n}: {got[:200]!r}")


def spoken(got: bytes) -> tuple[str, bool]:
    """The text of the whole events in an answer's beginning, and whether it was done."""
    said, done = "", False
    for event in dechunked(got.partition(b"\r\n\r\n")[2]).split(b"\n\n")[:-1]:
        if event == b"data: [DONE]":
            done = True
        elif event.startswith(b"data: {"):
            told = json.loads(event[6:])
            if "choices" in told:
                said += told["choices"][0]["delta"].get("content", "")
    return said, done


def dechunked(data: bytes) -> bytes:
    out = b""
    while True:
        size, found, data = data.partition(b"\r\n")
        if not found or not size:
            return out
        out += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]


async def storm_against(server: Any, seed: int) -> None:
    """One storm, and what has to hold after it."""
    print(f"seed {seed}")
    ends: Counter[str] = Counter()
    runtime = server.handler.runtime
    storm = Storm(seed, server.port)

    def read(entries: Any) -> None:
        ends.update(entry.id for entry in entries if entry.id.startswith("call-"))

    runtime.log.subscribe(read)
    await storm.run()
    async with asyncio.timeout(60):
        while runtime.busy():
            await asyncio.sleep(0.01)  # what was left behind ends by itself
    runtime.log.flush()
    runtime.log.readers.remove(read)
    held = [repr(s) for s in runtime.scheduler.stations.values() if s.waiting or s.running or s.staged]
    print(dict(storm.seen))
    assert not storm.wrong, storm.wrong[:3]
    assert not held
    assert set(ends.values()) <= {1}, [(k, v) for k, v in ends.items() if v > 1]
    answered = sum(v for k, v in storm.seen.items() if k.startswith("status"))
    assert len(ends) >= answered > 0
    assert storm.seen["done"] >= 3
    assert storm.seen["status 503"] + storm.seen["status 504"] + storm.seen["broken"] >= 3, "no engine died"


async def left_of(server: Any) -> tuple[Counter[str], float]:
    """What is alive when all connections are gone, by type, and MiB of resident memory; without the latest heads and lines."""
    async with asyncio.timeout(30):
        while server.connections:
            await asyncio.sleep(0.01)
    server.heads._known.clear()
    server.handler.runtime.log.recent.clear()
    gc.collect()
    alive = Counter(type(thing).__name__ for thing in gc.get_objects())
    return Counter({name: n for name, n in alive.items() if name not in WINDOWS}), psutil.Process().memory_info().rss / 2**20


def test_storms_leave_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The first ones fill what grows once; after the others nothing more is alive than after those."""
    caplog.set_level(logging.CRITICAL, "penstock")  # what is logged would be kept for the report, with its frames

    async def main() -> None:
        async with serving(ps.App(models=[model()], log=False)) as server:
            for seed in range(WARM):
                await storm_against(server, seed)
            before, resident = await left_of(server)
            for seed in range(WARM, WARM + SEEDS):
                await storm_against(server, seed)
            after, now = await left_of(server)
        grown = {name: more for name in after if (more := after[name] - before[name]) > 20}
        print(f"{SEEDS} storms: {resident:.1f} to {now:.1f} MiB, {sum(before.values())} to {sum(after.values())} objects")
        assert not grown, grown
        assert now < 1.05 * resident + 2

    asyncio.run(main())
