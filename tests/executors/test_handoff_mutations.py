"""Bugs planted in the hand-off: a storm that cannot fail proves nothing."""

from __future__ import annotations

import asyncio
import inspect
import textwrap
from typing import Any

import pytest

from penstock.executors.child.window import Window
from penstock.executors.thread import ThreadExecutor
from penstock.executors.thread_worker import Stream

from .test_storm import TARGETS, over_threads, seeded

MUTATIONS: dict[str, tuple[type, str, str, str]] = {
    "a late staged work that is forgotten": (ThreadExecutor, "_drain", "work.replica in staged", "False"),
    "a revoked work that stays": (ThreadExecutor, "revoke", "staged.pop(work.replica, None)", "staged.get(work.replica)"),
    "a message that comes while the flag falls": (ThreadExecutor, "_drain", "        if inbox:", "        if False:"),
    "a work that is started after the stop": (ThreadExecutor, "run", "if self._stopping:", "if False:"),
    "a staged work that nobody returns at the stop": (ThreadExecutor, "_go_on", "if self._stopping:", "if False:"),
    "a producer that is not woken": (Window, "acknowledge", "self._free.set()", "pass"),
    "items that are announced once for all": (Stream, "collect", "self._told = False", "pass"),
}


def storms() -> None:
    for seed in range(20):
        for kind in TARGETS:
            with seeded(seed) as dice:
                asyncio.run(over_threads(dice, kind, 500, patience=1.0))
                for _ in range(5):
                    asyncio.run(over_threads(dice, kind, 60, stop_at=dice.randint(1, 30), patience=1.0))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_storms_find(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, old, new = MUTATIONS[mutation]
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has no {old!r} any more"
    made: dict[str, Any] = {}
    code = "from __future__ import annotations\n" + source.replace(old, new)
    exec(compile(code, "<mutant>", "exec"), function.__globals__, made)
    monkeypatch.setattr(owner, name, made[name])
    with pytest.raises(AssertionError):
        storms()
