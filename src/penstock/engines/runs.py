"""How a worker cuts a batch: texts of similar length run together, so that little of a run is padding.

The scheduler's batch holds what may go together; only here are the true lengths known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def plan(lengths: Sequence[int], most: int, waste: float = math.inf) -> list[list[int]]:
    """Indices in runs by length, each of one text, or of at most `most` tokens with at most `waste` of padding besides."""
    runs: list[list[int]] = []
    total = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        total += length
        if not runs or total > most or (len(runs[-1]) + 1) * length - total > waste:
            runs.append([])
            total = length
        runs[-1].append(index)
    return runs


def padded_runs(lengths: Sequence[int], device: Any) -> list[list[int]]:
    """Runs for a model that pads.

    On a processor what is more than some hundred tokens leaves the caches, and a token of padding costs what any other does;
    a GPU is idle below some thousands.
    """
    return plan(lengths, 512, 64) if device.type == "cpu" else plan(lengths, 32768, 4096)
