"""An emulated engine: a model with slots whose steps take a stated time, as a device's do, and whose tokens are numbers.

seconds of a step = `fixed` + `decode` x requests under way + `prefill` x prompt tokens worked off. The defaults are fitted
to measurements of Llama-2-70B on eight H100s (Patel et al., Splitwise, ISCA 2024).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import penstock as ps


class Emulated:
    """`prompt` is a list of tokens, or how many there are; the answer is as long as it may be, and counts down."""

    def __init__(self, fixed: float = 0.029, decode: float = 0.32e-3, prefill: float = 0.095e-3) -> None:
        self.fixed, self.decode, self.prefill = fixed, decode, prefill
        self.starts: dict[int, int] = {}
        self.left: dict[int, int] = {}

    def add(self, slot: int, prompt: Any, max_tokens: int) -> int:
        self.starts[slot] = tokens(prompt)
        self.left[slot] = max_tokens
        return self.starts[slot]

    def advance(self, slots: dict[int, int]) -> tuple[float, list[tuple[int, Any]]]:
        """The seconds of this step, and what it gives."""
        out: list[tuple[int, Any]] = []
        worked = decodes = 0
        starts, left = self.starts, self.left
        for slot, units in slots.items():
            if starts[slot]:
                worked += units
                starts[slot] -= units
                if starts[slot]:
                    continue
            else:
                decodes += 1
            left[slot] -= 1
            out.append((slot, left[slot]))
            if left[slot] <= 0:
                out.append((slot, ps.END))
        return self.fixed + self.decode * decodes + self.prefill * worked, out

    def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:
        began = time.perf_counter()
        seconds, out = self.advance(slots)
        time.sleep(max(0.0, began + seconds - time.perf_counter()))
        return out

    def drop(self, slot: int) -> None:
        del self.starts[slot], self.left[slot]


class OnTheLoop(Emulated):
    """The same as a task of the loop; with `penstock.sim.loop.VirtualLoop` in virtual time."""

    async def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:  # type: ignore[override]
        seconds, out = self.advance(slots)
        await asyncio.sleep(seconds)
        return out


def tokens(prompt: Any, *_: Any) -> int:
    """How many tokens a prompt has: what its start costs."""
    return prompt if isinstance(prompt, int) else len(prompt)
