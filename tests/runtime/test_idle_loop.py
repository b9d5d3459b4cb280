"""Whom the watchdog blames when the loop stands still."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import pytest

from penstock.runtime.watch import _IDLE


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_an_idle_loop_is_recognised(kind: str) -> None:
    """So that a busy machine, on which an idle loop comes late, is not taken for somebody's blocking code."""
    make = asyncio.new_event_loop if kind == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    up: list[asyncio.AbstractEventLoop] = []
    ended: list[asyncio.Event] = []

    async def main() -> None:
        ended.append(asyncio.Event())
        up.append(asyncio.get_running_loop())
        await ended[0].wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        found = ""
        end = time.monotonic() + 10
        while not (up and found.endswith(_IDLE)):
            assert time.monotonic() < end, found
            frame = sys._current_frames().get(thread.ident or 0)
            found = "" if frame is None else frame.f_code.co_filename
    finally:
        up[0].call_soon_threadsafe(ended[0].set)
        thread.join()
