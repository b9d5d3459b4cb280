"""Storms on the whole runtime in virtual time: every call ends once, nothing hangs, every lease comes back."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from penstock.sim.loop import Hang, VirtualLoop
from penstock.sim.runtime_storm import RuntimeStorm

SEEDS = int(os.environ.get("PENSTOCK_RUNTIME_SEEDS", "300"))
CHUNKS = 20
COUNTED = 200  # the first of them, in which every kind of call and fault is reached
KEPT = Path(__file__).parent.parent / "seeds" / "runtime.txt"

# What the first storms must reach, or they test less than they say.
REACHED = [
    *("grown", "shrunk", "rolled", "not grown", "not scaled, since one did not load", "slots scaled"),
    *("speaker: ok", "speaker: failed", "painter: ok", "error: StreamOverflow"),
    *("staged", "taken", "revoked", "revoked too late", "crash", "crash while running", "crash with staged work", "stuck"),
    *(
        "stop ordered",
        "stopped early",
        "stopped in the middle",
        "window full",
        "broke off",
        "left",
        "cancelled",
        "map broken off",
    ),
    *(f"outcome: {outcome}" for outcome in ("ok", "failed", "cancelled", "refused", "expired")),
    *(
        f"caller {way}"
        for way in (
            "waits",
            "starts",
            "calls_back",
            "leaves",
            "cancels",
            "never_waits",
            "reads",
            "maps",
            "joins",
            "floods",
            "changes_mind",
        )
    ),
    *(f"error: {name}" for name in ("Bad", "BadResult", "DeadlineExceeded", "DeadlockRefused", "QueueFull", "ShuttingDown")),
    *(f"error: {name}" for name in ("StartTimeout", "ProgressTimeout", "Superseded", "WorkerLost", "DeadlineInfeasible")),
    *("tokens: ok", "count: ok", "chain: ok", "graph: ok", "many: ok", "embed: ok", "collect: ok", "model: ok", "newest: ok"),
]


def storm(seed: int) -> RuntimeStorm:
    try:
        return RuntimeStorm(seed).run()
    except BaseException as error:
        error.add_note(f"seed={seed}  replay: python -m penstock.sim.runtime_storm --seed {seed}")
        raise


def kept() -> list[int]:
    return [int(line) for line in KEPT.read_text().split("\n") if line and not line.startswith("#")]


@pytest.mark.parametrize("seed", kept())
def test_found_seeds(seed: int) -> None:
    storm(seed)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_laws_hold(chunk: int) -> None:
    for seed in range(COUNTED + chunk, SEEDS, CHUNKS):
        storm(seed)


def test_storms_reach_every_kind_of_call_and_fault() -> None:
    seen: Counter[str] = Counter()
    for seed in range(COUNTED):
        counts = storm(seed).seen
        seen += counts
        assert sum(count for what, count in counts.items() if what.startswith("outcome")) >= 50
        assert sum(counts[fault] for fault in ("crash", "left", "cancelled", "broke off", "stuck", "error: Bad")) >= 5
    for what, count in sorted(seen.items()):
        print(f"{count:8} {what}")
    assert not [what for what in REACHED if not seen[what]]


def test_same_seed_same_log() -> None:
    for seed in (5, 6, 7):
        first, second = storm(seed).trace, storm(seed).trace
        assert len(first) >= 40
        assert first == second


def test_the_loop_moves_its_clock_and_does_not_sleep() -> None:
    import asyncio

    loop = VirtualLoop()
    seen: list[float] = []

    async def program() -> None:
        for _ in range(3):
            await asyncio.sleep(1000.0)
            seen.append(loop.time())

    loop.run_until_complete(program())
    assert seen == [1000.0, 2000.0, 3000.0]
    with pytest.raises(Hang):
        loop.run_until_complete(loop.create_future())
    loop.close()
