"""Models that advance in steps, on the loop, in threads and in child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import penstock as ps
from penstock.context import current_budget


class Words:
    """Says a word as often as it is told; notes how full its steps were."""

    def __init__(self) -> None:
        self.requests: dict[int, list[Any]] = {}
        self.sizes: list[int] = []
        self.dropped = 0

    def add(self, slot: int, word: str, times: int) -> int | None:
        if times < 0:
            raise ValueError("times is negative")
        assert slot not in self.requests
        self.requests[slot] = [word, times]
        return len(word)

    def step(self, slots: dict[int, int]) -> list[tuple[int, str]]:
        self.sizes.append(len(slots))
        out: list[tuple[int, Any]] = []
        for slot, units in slots.items():
            request = self.requests[slot]
            if isinstance(request[1], int) and len(request) == 2:
                request.append(len(request[0]))
            request[2] -= units
            if request[2] > 0:
                continue
            if request[0] == "explode":
                raise RuntimeError("boom")
            if request[0] == "fail":
                out.append((slot, KeyError("this one")))
            elif request[1] == 0:
                out.append((slot, ps.END))
            else:
                request[1] -= 1
                out.append((slot, (lambda: None) if request[0] == "half lambda" else request[0]))
        return out

    def drop(self, slot: int) -> None:
        del self.requests[slot]
        self.dropped += 1


class AsyncWords(Words):
    """The same on the loop."""

    async def step(self, slots: dict[int, int]) -> list[tuple[int, str]]:  # type: ignore[override]
        await asyncio.sleep(0.001)
        return super().step(slots)


class Broken(Words):
    """Does not load."""

    def __init__(self) -> None:
        raise OSError("no weights")


threaded = ps.service(Words, name="words", batch=ps.Slots(4), on=ps.Thread())
inline = ps.service(AsyncWords, name="async_words", batch=ps.Slots(4))
last = ps.service(Words, name="last_word", batch=ps.Slots(2, stream=False), on=ps.Thread())
two = ps.service(Words, name="two_models", batch=ps.Slots(2), on=ps.Thread(2))
strict = ps.service(Words, name="strict", batch=ps.Slots(2, slow="drop"), on=ps.Thread(), buffer=4)

OPTIONS: dict[str, Any] = {"max_restarts": 1000, "kill_after": 5.0}
child = ps.service(Words, name="child", batch=ps.Slots(4), on=ps.Process(warmup=("warm", 2), **OPTIONS))
children = ps.service(Words, name="children", batch=ps.Slots(2), on=ps.Process(2, **OPTIONS))
async_child = ps.service(AsyncWords, name="async_child", batch=ps.Slots(4), on=ps.Process(warmup=("warm", 2), **OPTIONS))
last_child = ps.service(Words, name="last_child", batch=ps.Slots(2, stream=False), on=ps.Process(**OPTIONS))
strict_child = ps.service(Words, name="strict_child", batch=ps.Slots(2, slow="drop"), on=ps.Process(**OPTIONS), buffer=4)
again = ps.service(
    Words, name="again", batch=ps.Slots(4, stream=False), on=ps.Process(**OPTIONS), safe=True, retry=ps.Retry(reserve=100)
)


class Moody(Words):
    """Does to its process what it is told to."""

    def add(self, slot: int, word: str, times: int = 1) -> int | None:  # type: ignore[override]
        units = super().add(slot, word, times)
        return None if word in HARM or word.startswith("hang") else units

    def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:  # type: ignore[override]
        told = {slot: self.requests[slot][0] for slot in slots}
        for word in told.values():
            if word == "exit":
                os._exit(3)
            elif word == "abort":
                os.abort()
            elif word == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif word.startswith("hang"):
                if mark := word.removeprefix("hang").strip():
                    Path(mark).touch()  # the step has begun
                time.sleep(1000)
        out = super().step({slot: n for slot, n in slots.items() if told[slot] not in HARM})
        return out + [(slot, lambda: None) for slot, word in told.items() if word == "lambda"]


HARM = ("exit", "abort", "stop", "hang", "lambda")
QUEUE = ps.Queue(patience=False)  # nobody is turned away for what others did
moody = ps.service(
    Moody,
    name="moody",
    batch=ps.Slots(3),
    on=ps.Process(2, **{**OPTIONS, "kill_after": 0.2}),
    progress_timeout=0.6,
    admit=QUEUE,
    buffer=6,
)
impatient = ps.service(Moody, name="impatient", batch=ps.Slots(2), on=ps.Process(kill_after=0.05), progress_timeout=60.0)
unhurried = ps.service(Moody, name="unhurried", batch=ps.Slots(3), on=ps.Process(2), progress_timeout=60.0)
fragile = ps.service(Moody, name="fragile", batch=ps.Slots(2), on=ps.Process(max_restarts=0))
cold = ps.service(Moody, name="cold", batch=ps.Slots(2), on=ps.Process(warmup=("never", -1)))
last_moody = ps.service(Moody, name="last_moody", batch=ps.Slots(2, stream=False), on=ps.Process())


class Asking(Words):
    """Asks another service about each word, and says its name once."""

    def add(self, slot: int, word: str) -> int | None:  # type: ignore[override]
        return super().add(slot, str(shouted.submit(word).result()), 1)


@ps.service
def shouted(word: str) -> str:
    return word.upper() + "!" + (current_budget().tenant or "")


asking = ps.service(Asking, name="asking", batch=ps.Slots(2), on=ps.Process())


class Pictures(Words):
    """Adds one to an array so often."""

    def add(self, slot: int, picture: Any, times: int) -> None:  # type: ignore[override]
        self.requests[slot] = [picture, times]

    def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:  # type: ignore[override]
        out: list[tuple[int, Any]] = []
        for slot in slots:
            request = self.requests[slot]
            request[0], request[1] = request[0] + 1, request[1] - 1
            out.append((slot, request[0]))
            if not request[1]:
                out.append((slot, ps.END))
        return out


pictures = ps.service(Pictures, name="pictures", batch=ps.Slots(2), on=ps.Process())


class Pids(Words):
    """Says whose process it is so often, slowly enough that others come meanwhile."""

    def add(self, slot: int, times: int) -> None:  # type: ignore[override]
        self.requests[slot] = [os.getpid(), times]

    def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:  # type: ignore[override]
        time.sleep(0.001)
        out: list[tuple[int, Any]] = []
        for slot in slots:
            request = self.requests[slot]
            request[1] -= 1
            out.append((slot, request[0] if request[1] >= 0 else ps.END))
        return out


renewed = ps.service(Pids, name="renewed", batch=ps.Slots(2), on=ps.Process(2, recycle=5))
renewed_alone = ps.service(Pids, name="renewed_alone", batch=ps.Slots(2), on=ps.Process(recycle=5, device="xpu:0"))
