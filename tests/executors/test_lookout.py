"""What executors have to say is heard within a turn of the loop, however long that is."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest

import penstock as ps
from penstock.executors import lookout as module
from penstock.executors.lookout import Lookout, lookout


def until(condition: Any) -> None:
    """Block this thread, and with it its loop."""
    late = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < late
        time.sleep(0.001)


def doubled(x: int) -> int:
    return 2 * x


@pytest.mark.parametrize("place", [ps.Thread(1), ps.Process()], ids=["thread", "process"])
def test_a_replica_goes_on_while_its_loop_is_in_one_turn(place: Any) -> None:
    body = ps.service(doubled, name="doubled", on=place)

    async def main() -> None:
        async with ps.Runtime(body, watch=False):
            assert await body(1) == 2
            calls = [body(n).start() for n in range(100)]
            watch = lookout(asyncio.get_running_loop())

            def all_done() -> bool:
                watch.glance()
                return all(call.done() for call in calls)

            until(all_done)  # without a turn: nothing was awaited
            assert await asyncio.gather(*calls) == [2 * n for n in range(100)]

    asyncio.run(main())


def test_a_look_is_rare_and_ends_with_the_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    watch, fd = Lookout(), os.eventfd(1)
    heard: list[float] = []
    watch.add(fd, lambda: heard.append(now))
    for step in range(9):
        now = 1.0 + step * module.EVERY / 2
        watch.glance()
    assert heard == pytest.approx([1.0 + n * module.EVERY for n in range(5)])
    watch.remove(fd)
    watch.remove(fd)
    os.close(fd)
    now = 2.0
    watch.glance()
    assert len(heard) == 5


def test_nothing_is_left_when_the_executor_has_stopped() -> None:
    async def main() -> None:
        watch = lookout(asyncio.get_running_loop())
        for place in (ps.Thread(2), ps.Process()):
            body = ps.service(doubled, name="doubled", on=place)
            async with ps.Runtime(body):
                assert await body(1) == 2
                assert watch._answers or watch._asked
            assert not watch._answers and not watch._asked

    asyncio.run(main())
