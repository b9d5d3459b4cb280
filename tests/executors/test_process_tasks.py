"""Many calls of an async body at once in a child process: what dies, leaves or cannot be sent, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import penstock as ps
from penstock.core.check import check, idle
from penstock.errors import BadResult, ConfigError, ProgressTimeout, ServiceError, WorkerLost
from penstock.executors import process_life

from . import task_bodies as bodies

SEEDS = int(os.environ.get("PENSTOCK_PROCESS_SEEDS", "3"))


def run(body: Callable[[ps.Runtime], Awaitable[None]], *services: Any) -> None:
    async def main() -> None:
        async with ps.Runtime(*services) as runtime:
            async with asyncio.timeout(60):
                await body(runtime)
                while runtime.busy():
                    await asyncio.sleep(0.001)
            check(runtime.scheduler, runtime.clock())
            idle(runtime.scheduler)
            for service in services:
                assert not getattr(runtime.bindings[service].executor, "seats", None)

    asyncio.run(main())


async def said(call: Any) -> list[Any]:
    return [word async for word in call]


async def into(got: list[Any], stream: Any) -> None:
    """Keep the items of a stream that may fail."""
    async for item in stream:
        got.append(item)


async def told(service: Any) -> dict[str, int]:
    (found,) = await said(service("told"))
    return dict(found)


async def full(runtime: ps.Runtime, service: Any, count: int) -> Any:
    """The service's executor, once so many calls are in its slots."""
    while runtime.snapshot()[service.name].in_flight < count:
        await asyncio.sleep(0.001)
    executor: Any = runtime.bindings[service].executor
    return executor


def test_calls_run_beside_each_other_in_one_process() -> None:
    async def body(runtime: ps.Runtime) -> None:
        met = await asyncio.gather(
            *(said(bodies.talk("meet", 32)) for _ in range(32))
        )  # none of them ends before all are there
        assert len({pid for (pid,) in met}) == 1 and met[0][0] != os.getpid()
        found = await asyncio.gather(*(said(bodies.talk(f"word {n}", n)) for n in range(100)))
        assert found == [[f"word {n}"] * n for n in range(100)]
        assert (await told(bodies.talk))["running"] == 1

    run(body, bodies.talk)


def test_answers_and_errors_of_plain_coroutines() -> None:
    async def body(runtime: ps.Runtime) -> None:
        with ps.budget(tenant="acme"):
            assert await asyncio.gather(*(bodies.ask(f"w{n}") for n in range(50))) == [f"W{n}!acme" for n in range(50)]
        with ps.budget(tenant="b"):
            ends = await asyncio.gather(*(bodies.ask(w) for w in ("a", "fail", "lambda", "c")), return_exceptions=True)
        assert (ends[0], ends[3]) == ("A!b", "C!b")
        assert isinstance(ends[1], KeyError) and "in the child process of ask" in ends[1].__notes__[0]
        assert isinstance(ends[2], BadResult)
        with pytest.raises(TypeError):
            await bodies.ask("a", "b")

    run(body, bodies.ask, bodies.shouted)


def test_a_call_that_exits_ends_nobody_elses() -> None:
    async def body(runtime: ps.Runtime) -> None:
        words = ("a", "exits", "b", "interrupts", "c")
        ends = await asyncio.gather(*map(bodies.ask, words), return_exceptions=True)
        assert [ends[0], ends[2], ends[4]] == ["A!", "B!", "C!"]
        assert "called sys.exit(3)" in str(ends[1]) and "KeyboardInterrupt" in str(ends[3])
        assert isinstance(ends[1], ServiceError) and isinstance(ends[3], ServiceError)
        others = [asyncio.ensure_future(said(bodies.talk("on", 500))) for _ in range(4)]
        with pytest.raises(ServiceError, match=r"sys\.exit"):
            await said(bodies.talk("exits", 3))
        assert await asyncio.gather(*others) == [["on"] * 500] * 4
        assert runtime.restarts == 0

    run(body, bodies.ask, bodies.shouted, bodies.talk)


def test_what_fails_or_cannot_be_sent_fails_alone() -> None:
    async def body(runtime: ps.Runtime) -> None:
        others = [asyncio.ensure_future(said(bodies.talk("on", 500))) for _ in range(4)]
        got: list[str] = []
        with pytest.raises(KeyError):
            await into(got, bodies.talk("fail", 3))
        assert got == ["fail"] * 3
        with pytest.raises(BadResult, match="cannot leave its process"):
            await said(bodies.talk("lambda", 5))
        assert await asyncio.gather(*others) == [["on"] * 500] * 4
        assert (await told(bodies.talk))["running"] == 1

    run(body, bodies.talk)


def test_who_leaves_is_cancelled_there_and_the_slot_is_taken_when_that_is_over() -> None:
    async def body(runtime: ps.Runtime) -> None:
        for _ in range(3):  # more than there are slots
            streams = [bodies.talk("wait", 1).__aiter__() for _ in range(20)]
            assert [await anext(stream) for stream in streams] == ["wait"] * 20
            for stream in streams:
                await stream.aclose()
        calls = [asyncio.ensure_future(said(bodies.talk("wait", 0))) for _ in range(10)]
        await full(runtime, bodies.talk, 10)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        while (found := await told(bodies.talk))["running"] > 1:
            await asyncio.sleep(0.001)
        assert 60 <= found["left"] <= 70  # one that was cancelled before it began never left

    run(body, bodies.talk)


def test_what_does_not_stop_is_killed_after_a_while() -> None:
    async def body(runtime: ps.Runtime) -> None:
        stream = bodies.strict("deaf", 10**6).__aiter__()
        assert await anext(stream) == "deaf"
        await stream.aclose()
        while runtime.restarts == 0:
            await asyncio.sleep(0.001)
        assert await said(bodies.strict("on", 2)) == ["on"] * 2

    run(body, bodies.strict)


def test_one_that_nobody_reads_pauses_and_others_go_on() -> None:
    async def body(runtime: ps.Runtime) -> None:
        stream = bodies.talk("on", 1000).__aiter__()
        assert await anext(stream) == "on"
        assert len(await said(bodies.talk("other", 300))) == 300
        assert (await told(bodies.talk))["said"] <= 2 + 1 + 8 + 8 + 300  # warm-up, read, the buffer and what was acknowledged
        assert [word async for word in stream] == ["on"] * 999

    run(body, bodies.talk)


def test_a_death_ends_every_call_of_its_slots_once_and_the_next_ones_are_served() -> None:
    async def body(runtime: ps.Runtime) -> None:
        calls = [asyncio.ensure_future(said(bodies.talks("on", 10**9))) for _ in range(8)]
        waiting = asyncio.ensure_future(said(bodies.talks("later", 2)))
        executor = await full(runtime, bodies.talks, 8)
        os.kill(next(iter(executor.processes)), signal.SIGKILL)
        done: set[Any] = set()
        while len(done) < 4:
            more, _ = await asyncio.wait(set(calls) - done, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        assert all(isinstance(call.exception(), WorkerLost) for call in done)
        assert await waiting == ["later"] * 2 and runtime.restarts == 1
        for call in set(calls) - done:
            assert not call.done()
            call.cancel()
        await asyncio.wait(calls)

    run(body, bodies.talks)


def test_safe_answers_are_tried_again() -> None:
    async def body(runtime: ps.Runtime) -> None:
        calls = [bodies.again(str(n)).start() for n in range(30)]
        executor = await full(runtime, bodies.again, 4)
        for pid in executor.processes:
            os.kill(pid, signal.SIGKILL)
        assert await asyncio.gather(*calls) == [str(n) for n in range(30)]

    run(body, bodies.again)


def test_a_process_whose_loop_stands_still_is_ended() -> None:
    async def body(runtime: ps.Runtime) -> None:
        for word in ("hang", "stop"):
            beside = asyncio.ensure_future(said(bodies.one("wait", 0)))
            await full(runtime, bodies.one, 1)
            with pytest.raises(ProgressTimeout):
                await said(bodies.one(word))
            with pytest.raises(ProgressTimeout):
                await beside
        assert await said(bodies.one("on", 2)) == ["on"] * 2

    run(body, bodies.one)


def test_a_warm_up_that_raises_is_heard_at_the_start() -> None:
    with pytest.raises(KeyError, match="this one"):
        run(lambda runtime: asyncio.sleep(0), bodies.cold)


def test_recycling_loses_nobody() -> None:
    async def body(runtime: ps.Runtime) -> None:
        pids: set[int] = set()
        while len(pids) < 5:
            found = await asyncio.gather(*(said(bodies.renewed("meet", 1)) for _ in range(8)))
            pids |= {pid for (pid,) in found}
        assert runtime.snapshot()["renewed_talk"].outcomes.keys() == {"ok"}

    run(body, bodies.renewed)


def test_replicas_come_and_go() -> None:
    async def body(runtime: ps.Runtime) -> None:
        await runtime.scale(bodies.talks, 3)
        calls = [asyncio.ensure_future(said(bodies.talks("on", 3000))) for _ in range(12)]
        executor = await full(runtime, bodies.talks, 12)
        assert len(executor.processes) == 3
        await runtime.scale(bodies.talks, 1)
        assert await asyncio.gather(*calls) == [["on"] * 3000] * 12
        while len(executor.processes) > 1:
            await asyncio.sleep(0.001)
        assert await said(bodies.talks("on", 2)) == ["on"] * 2

    run(body, bodies.talks)


def test_a_grace_that_is_over_ends_calls_and_processes() -> None:
    async def main() -> Any:
        async with ps.Runtime(bodies.talk, grace=0.05) as runtime:
            call = asyncio.ensure_future(said(bodies.talk("wait", 1)))
            executor = await full(runtime, bodies.talk, 1)
        await asyncio.wait([call])
        assert call.cancelled() or call.exception() is not None
        assert not executor.processes

    asyncio.run(main())


async def batched(xs: list[int]) -> list[int]:
    return xs


def plain(x: int) -> int:
    return x


def test_declarations_that_cannot_be() -> None:
    for target, options in ((batched, {"batch": ps.Batch()}), (plain, {})):
        with pytest.raises(ConfigError, match="for an async body, without batch="):
            ps.service(target, on=ps.Process(concurrency=2), **options)
    with pytest.raises(ConfigError, match="at least 1"):
        ps.Process(concurrency=0)


class Storm:
    """One seed's callers, who come, read, dawdle and leave, and what befalls the processes meanwhile."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.ended: Counter[str] = Counter()
        self.begun = 0
        self.over = False

    async def run(self) -> None:
        async with ps.Runtime(bodies.moody) as runtime:
            kills = asyncio.create_task(self.kills(runtime))
            await asyncio.gather(*(self.reader() for _ in range(12)))
            self.over = True
            await kills
            async with asyncio.timeout(30):
                while runtime.busy():
                    await asyncio.sleep(0.001)
                while await self.read("w", 3, 0.0) != "ok":  # one may have been stopped a moment ago
                    pass
            executor: Any = runtime.bindings[bodies.moody].executor
            while runtime.busy():
                await asyncio.sleep(0.001)
            assert not executor.seats
            for replica in executor.replicas:
                assert not replica.seats and not replica.works
            check(runtime.scheduler, runtime.clock())
            idle(runtime.scheduler)
        assert not executor.processes
        assert sum(self.ended.values()) == self.begun

    async def reader(self) -> None:
        for _ in range(8):
            word = (
                "w" if self.rng.random() > 0.04 else self.rng.choice(("exit", "stop", "hang", "lambda", "fail", "deaf", "wait"))
            )
            self.begun += 1
            self.ended[await self.read(word, self.rng.randrange(60), self.rng.random())] += 1

    async def read(self, word: str, times: int, leaves: float) -> str:
        got = 0
        try:
            async for item in bodies.moody(word, times):
                assert item == word
                got += 1
                if self.rng.random() < 0.1:
                    await asyncio.sleep(0.002)  # the body runs ahead, and pauses
                if self.rng.random() < (1.0 if word in ("wait", "deaf") else 0.02 * leaves):
                    return "left"
        except (WorkerLost, ProgressTimeout, BadResult, KeyError) as error:
            return type(error).__name__
        assert got == times
        return "ok"

    async def kills(self, runtime: ps.Runtime) -> None:
        executor: Any = runtime.bindings[bodies.moody].executor
        while not self.over:
            await asyncio.sleep(0.1 + self.rng.random() * 0.4)
            for pid in list(executor.processes)[: self.rng.randrange(3)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, self.rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP)))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_storm_of_calls_leaves_reads_and_kills(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_life, "PAUSES", (0.0, 0.01))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    storm = Storm(seed)
    asyncio.run(storm.run())
    gc.collect()
    assert storm.ended["ok"] > storm.begun / 10, storm.ended  # a busy machine takes longer, and is struck more often
    assert len(os.listdir("/proc/self/fd")) == before, storm.ended
