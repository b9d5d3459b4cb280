"""Models that advance in steps, on the loop, in threads and in child processes."""

from __future__ import annotations

import asyncio
from typing import Any

import penstock as ps


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
                out.append((slot, request[0]))
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
