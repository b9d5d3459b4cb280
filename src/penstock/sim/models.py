"""Models with slots for a simulated application; what they assert are the promises that are made to models."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random
from typing import Any

from penstock.executors.child.end import END


class Bad(Exception):
    """What a body raises when its input says so."""


async def pause(random: Random) -> None:
    await asyncio.sleep(random.choice((0.0, 0.001, 0.01, 0.05, 0.3)))


class Speaker:
    """Says 100 x, 100 x + 1 and so on, sometimes until nobody listens; some starts take several steps, and some steps
    fail all that take part.
    """

    def __init__(self, random: Random, budget: int) -> None:
        self.random = random
        self.budget = budget
        self.told: dict[int, list[int]] = {}
        self.failed: set[int] = set()  # in the step that failed, and not yet dropped

    def add(self, slot: int, x: int) -> int | None:
        assert slot not in self.told, f"slot {slot} is taken"
        if x % 11 == 5:
            raise Bad(x)
        self.told[slot] = [x, x % 9, 0]
        return x % 9 or None

    async def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:
        assert sum(slots.values()) <= self.budget, f"{slots} are more units than {self.budget}"
        assert not self.failed, f"{self.failed} were in a step that failed, and go on"
        await pause(self.random)
        if self.random.random() < 0.01:
            self.failed = set(slots)
            raise Bad(slots)
        return [(slot, item) for slot, units in slots.items() for item in self._advance(self.told[slot], units)]

    def _advance(self, told: list[int], units: int) -> Iterator[Any]:
        x, left, said = told
        told[1] = max(0, left - units)
        assert left == 0 or units <= left, f"{units} units of a start that has {left} left"
        if told[1]:
            return
        told[2] += 1
        if said < x % 12 or x % 13 == 12:
            yield 100 * x + said
        else:
            yield Bad(x) if x % 7 == 3 else END

    def drop(self, slot: int) -> None:
        del self.told[slot]
        self.failed.discard(slot)


class Painter(Speaker):
    """Has only the last item to give."""

    def _advance(self, told: list[int], units: int) -> Iterator[Any]:
        x, told[2] = told[0], told[2] + 1
        if told[2] > x % 5:
            yield 2 * x
            yield Bad(x) if x % 7 == 3 else END
