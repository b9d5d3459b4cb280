"""The meeting of a giver and a thread that is about to sleep, at each place where they can meet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from penstock.executors import bell
from penstock.executors.bell import Bell, Gate
from penstock.executors.pool import Pool


class Turnstile:
    """A gate that counts; to wait where nobody opened would be to sleep for ever."""

    def __init__(self) -> None:
        self.opened = 0

    def open(self) -> None:
        self.opened += 1

    def wait(self) -> None:
        assert self.opened, "asleep, and nobody will wake it"
        self.opened -= 1


class Meeting(list[Any]):
    """The list of the idle; lets something happen as a thread puts itself down."""

    def __init__(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        self.before, self.after = before, after

    def append(self, gate: Any) -> None:
        self.before()
        super().append(gate)
        self.after()


def nothing() -> None: ...


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["give", "close"])
def test_whoever_comes_as_a_thread_lies_down_is_seen(when: str, what: str) -> None:
    loop = asyncio.new_event_loop()
    try:
        pool, gate = Pool(loop, nothing), Turnstile()
        pool.size = 1
        act = pool.close if what == "close" else lambda: pool.give("work")
        pool._idle = Meeting(act, nothing) if when == "before" else Meeting(nothing, act)
        assert pool.wait(gate) == (None if what == "close" else "work")  # type: ignore[arg-type]
        assert gate.opened == 0, "the next sleep would end at once"
        assert not pool._idle
    finally:
        loop.close()


@pytest.mark.parametrize("eventfd", [True, False], ids=["eventfd", "elsewhere"])
def test_bell_and_gate_here_and_where_there_is_no_eventfd(eventfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not eventfd:
        monkeypatch.setattr(bell, "_eventfd", lambda flags=0: -1)
    there, back = Gate(), Gate()

    async def main() -> None:
        answered = asyncio.Event()
        rung = Bell(asyncio.get_running_loop(), answered.set)

        def thread() -> None:
            for _ in range(100):
                there.wait()
                back.open()
            rung.ring()
            rung.ring()

        worker = threading.Thread(target=thread)
        worker.start()
        for _ in range(100):
            there.open()
            back.wait()
        await asyncio.wait_for(answered.wait(), 30)
        worker.join()
        rung.silence()
        answered.clear()
        rung.ring()
        if eventfd:
            await asyncio.sleep(0)
            assert not answered.is_set()
        late.append(rung)

    late: list[Bell] = []
    asyncio.run(main())
    late[0].ring()  # a thread that outlives the loop rings into nothing
    late[0].silence()
