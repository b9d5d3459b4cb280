"""Async bodies that run many calls at once in a child process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import penstock as ps
from penstock.context import current_budget


class Talk:
    """Says a word as often as it is told, and does to its process what the word says."""

    def __init__(self) -> None:
        self.running = self.said = self.left = 0
        self.met = asyncio.Event()

    async def __call__(self, word: str, times: int = 1) -> AsyncIterator[Any]:
        self.running += 1
        try:
            if word == "meet":  # that many are here at once
                if self.running == times:
                    self.met.set()
                await self.met.wait()
                yield os.getpid()
                return
            if word == "told":
                yield {"running": self.running, "said": self.said, "left": self.left}
                return
            do(word)
            for _ in range(times):
                await asyncio.sleep(0)
                self.said += 1
                yield (lambda: None) if word == "lambda" else word
            if word == "fail":
                raise KeyError("this one")
            if word == "exits":
                sys.exit(3)
            if word == "wait":
                await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            if word == "deaf":
                await asyncio.sleep(1000)
            await asyncio.sleep(0)
            self.left += 1
            raise
        finally:
            self.running -= 1


def do(word: str) -> None:
    if word == "exit":
        os._exit(3)
    elif word == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif word == "hang":
        time.sleep(1000)


OPTIONS: dict[str, Any] = {"max_restarts": 1000, "kill_after": 5.0}
talk = ps.service(Talk, name="talk", on=ps.Process(concurrency=32, warmup=("warm", 2), **OPTIONS), buffer=8)
talks = ps.service(Talk, name="talks", on=ps.Process(2, concurrency=4, **OPTIONS))
one = ps.service(Talk, name="one", on=ps.Process(concurrency=2, **OPTIONS), progress_timeout=1.0)
strict = ps.service(Talk, name="strict", on=ps.Process(concurrency=4, max_restarts=1000, kill_after=0.05))
renewed = ps.service(Talk, name="renewed_talk", on=ps.Process(2, concurrency=4, recycle=5))
cold = ps.service(Talk, name="cold_talk", on=ps.Process(concurrency=2, warmup=("fail",)))
moody = ps.service(
    Talk,
    name="moody_talk",
    on=ps.Process(2, concurrency=3, max_restarts=1000, kill_after=0.2),
    progress_timeout=0.6,
    admit=ps.Queue(patience=False),
    buffer=6,
)


@ps.service
async def shouted(word: str) -> str:
    await asyncio.sleep(0.001)
    return word.upper() + "!" + (current_budget().tenant or "")


@ps.service(on=ps.Process(concurrency=8, **OPTIONS))
async def ask(word: str) -> Any:
    if word == "fail":
        raise KeyError("this one")
    if word == "lambda":
        return lambda: None
    if word == "exits":
        sys.exit(3)
    if word == "interrupts":
        raise KeyboardInterrupt
    if word == "wait":
        await asyncio.Event().wait()
    return str(await shouted(word))


@ps.service(on=ps.Process(concurrency=4, **OPTIONS), safe=True, retry=ps.Retry(reserve=100))
async def again(word: str) -> str:
    await asyncio.sleep(0.01)
    return word
