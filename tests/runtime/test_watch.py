"""What the watchdog says: a loop that stands still, and threads that the GIL serialises, once for each place."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import penstock as ps
from penstock.executors import gil
from penstock.runtime import watch as watching
from penstock.runtime.watch import Watch

HERE = os.path.basename(__file__)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Reports(logging.Handler):
    """What was logged; `came` is set with every line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.came.set()

    def of(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]


@pytest.fixture
def reports() -> Iterator[Reports]:
    handler = Reports()
    logger = logging.getLogger("penstock")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_the_first_call_on_an_idle_loop_wakes_the_watch(reports: Reports) -> None:
    """It sleeps while nothing runs, and a lone call may block for less than that."""

    @ps.service
    async def blocks() -> None:
        time.sleep(0.3)  # noqa: ASYNC251 - that is what is to be noticed

    async def main() -> None:
        async with ps.Runtime(blocks) as runtime, asyncio.timeout(30):
            assert runtime.watch is not None
            while runtime.unwatched is None:
                await asyncio.sleep(0.01)
            await blocks()
            while not runtime.watch.blocks:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert len(reports.of("stood still")) == 1
    assert "in service 'blocks'" in reports.lines[0]


def test_a_blocked_loop_is_reported_once_for_each_place_and_counted(reports: Reports) -> None:
    sampled = threading.Event()

    def helper() -> None:
        assert sampled.wait(30)  # stands still until the watchdog has looked

    @ps.service
    async def blocks() -> None:
        assert sampled.wait(30)

    @ps.service
    async def blocks_below() -> None:
        helper()

    async def main() -> None:
        async with ps.Runtime(blocks, blocks_below) as runtime:
            watch = runtime.watch
            assert watch is not None
            look, report = watch._place, watch._report
            reported: asyncio.Queue[None] = asyncio.Queue()

            def place(frame: Any) -> tuple[str, str, int]:
                found = look(frame)
                sampled.set()
                return found

            def tell(place: tuple[str, str, int], seconds: float) -> None:
                report(place, seconds)
                runtime.loop.call_soon_threadsafe(reported.put_nowait, None)

            watch._place, watch._report = place, tell  # type: ignore[method-assign]
            for count, service in enumerate((blocks, blocks, blocks_below, blocks), 1):
                sampled.clear()
                await service()
                await asyncio.wait_for(reported.get(), 30)
                assert watch.blocks >= count
            assert watch.blocked_seconds > 0

    asyncio.run(main())
    (first,) = reports.of("'blocks'")
    (second,) = reports.of("'blocks_below'")
    for line, code in ((first, blocks.body.target.__code__), (second, helper.__code__)):
        assert f"{HERE}:{code.co_firstlineno + (2 if code.co_name == 'blocks' else 1)};" in line
        assert "stood still for" in line
        assert "`def` instead of `async def`" in line


Window = tuple[float, gil.Reading, float]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[Window]:
    """The windows on which a verdict was given; shorter ones than usual."""
    monkeypatch.setattr(gil, "WINDOW", 0.2)
    monkeypatch.setattr(gil, "PROBE_EVERY", 0.04)
    windows: list[Window] = []
    verdict = gil.serialised

    def serialised(*window: Any) -> bool:
        windows.append(window)
        return verdict(*window)

    monkeypatch.setattr(gil, "serialised", serialised)
    return windows


def keep_busy(service: Any, over: Callable[[], bool]) -> None:
    """Four callers, each with one call at a time, until it is over."""

    async def main() -> None:
        async with ps.Runtime(service), asyncio.timeout(60):

            async def caller() -> None:
                while not over():
                    await service()

            await asyncio.gather(*(caller() for _ in range(4)))

    asyncio.run(main())


@ps.service(on=ps.Thread(4))
def computes() -> int:
    return sum(i for i in range(100_000))


DATA = bytes(1_000_000)


@ps.service(on=ps.Thread(4))
def hashes() -> bytes:
    return hashlib.sha256(DATA).digest()


@ps.service(on=ps.Thread(4))
def waits() -> None:
    threading.Event().wait(0.002)


def test_a_loop_that_has_ended_is_not_said_to_stand_still(reports: Reports) -> None:
    class Deaf(asyncio.SelectorEventLoop):
        """Ends before it comes to what the watchdog has asked of it."""

        def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:
            return None

    async def main() -> ps.Runtime:
        async with ps.Runtime() as runtime:
            assert runtime.watch is not None
            looked = threading.Event()
            look = runtime.watch._place

            def place(frame: Any) -> tuple[str, str, int]:
                looked.set()
                return look(frame)

            runtime.watch._place = place  # type: ignore[method-assign]
            async with asyncio.timeout(30):
                while not looked.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            return runtime

    with asyncio.Runner(loop_factory=Deaf) as runner:
        watch = runner.run(main()).watch
    assert watch is not None
    assert watch._thread is not None
    watch._thread.join(30)
    assert (watch.blocks, reports.lines) == (0, [])


@pytest.mark.skipif(CORES < 2, reason="one core serialises everything")
def test_threads_that_the_gil_serialises_are_advised(reports: Reports, judged: list[Window]) -> None:
    keep_busy(computes, lambda: bool(reports.of("GIL")) or len(judged) >= 60)
    if not reports.of("GIL"):  # right only if others used the cores: what waits for one does not wait for the GIL
        assert sum(window.queued > 0.5 * wall for _, window, wall in judged) > 30, judged
        return
    (line,) = reports.of("GIL")
    code = computes.body.target.__code__
    assert f"'computes' at {code.co_filename}:{code.co_firstlineno} " in line
    assert "use on=penstock.Process(replicas=4)" in line


@pytest.mark.skipif(CORES < 2, reason="one core serialises everything")
@pytest.mark.parametrize("service", [hashes, waits], ids=["native", "waiting"])
def test_threads_that_release_the_gil_are_not(service: Any, reports: Reports, judged: list[Window]) -> None:
    keep_busy(service, lambda: len(judged) >= 5)
    assert not reports.of("GIL")


@pytest.mark.parametrize(("used", "advised"), [(0.1, True), (1.9, False)], ids=["waiting", "computing"])
@pytest.mark.parametrize("on", [None, ps.Thread(2)], ids=["default", "chosen"])
def test_a_queue_before_threads_that_only_wait(
    reports: Reports, monkeypatch: pytest.MonkeyPatch, used: float, advised: bool, on: ps.Thread | None
) -> None:
    """Said once, after some seconds, where nobody has chosen the number and the process has little to do."""
    go = threading.Event()

    def asks(x: int) -> int:
        go.wait(30)
        return x

    service = ps.service(asks, on=on)
    times = [0.0, 0.0]

    async def main() -> None:
        async with ps.Runtime(service, profile="edge", watch=False) as runtime:
            watch = Watch(runtime)
            watch.know(service)
            clock = SimpleNamespace(monotonic=lambda: times[0], process_time=lambda: times[1])
            monkeypatch.setattr(watching, "time", clock)
            calls = [service(n).start() for n in range(20)]
            for _ in range(4):
                watch._advise()
                assert not reports.of("only wait") or times[0] >= 3.0
                times[0] += 2.0
                times[1] += used
            go.set()
            assert await asyncio.gather(*calls) == list(range(20))

    asyncio.run(main())
    lines = reports.of("only wait")
    assert len(lines) == (advised and on is None)
    if lines:
        assert f"'asks' at {__file__}" in lines[0] and "on=penstock.Thread(" in lines[0]


def test_the_advice_names_service_place_and_remedy_once(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with ps.Runtime(computes) as runtime:
            assert runtime.watch is not None
            monkeypatch.setattr(runtime.bindings[computes].executor, "gil_bound", lambda: True)
            for _ in range(3):
                runtime.watch._advise()

    asyncio.run(main())
    assert len(reports.of("GIL")) == 1
