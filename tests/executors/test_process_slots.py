"""Models that advance in steps, in child processes: what dies, hangs or cannot be sent, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock.core.check import check, idle
from penstock.errors import BadResult, InvalidRequest, ProgressTimeout, ServiceError, ShuttingDown, WorkerLost
from penstock.executors import process_life
from penstock.executors.child.wire import RUN, Encoded, encode
from penstock.executors.process_slots import ProcessSlotsExecutor

from . import slot_bodies as bodies
from .fake import Host, work

SEEDS = int(os.environ.get("PENSTOCK_PROCESS_SEEDS", "3"))


def run(body: Callable[[ps.Runtime], Awaitable[None]], *services: Any) -> None:
    async def main() -> None:
        async with ps.Runtime(*services) as runtime:
            await asyncio.wait_for(body(runtime), 60)
            while runtime.busy():
                await asyncio.sleep(0.001)

    asyncio.run(main())


async def said(call: Any) -> list[Any]:
    return [word async for word in call]


async def full(runtime: ps.Runtime, service: Any, count: int) -> Any:
    """The service's executor, once so many requests are in its slots."""
    while runtime.snapshot()[service.name].in_flight < count:
        await asyncio.sleep(0.001)
    executor: Any = runtime.bindings[service].executor
    return executor


def kill(executor: Any, sign: int = signal.SIGKILL) -> None:
    for pid in executor.processes:
        os.kill(pid, sign)


def test_a_death_ends_every_request_of_its_slots_once_and_the_next_ones_are_served() -> None:
    async def body(runtime: ps.Runtime) -> None:
        calls = [asyncio.ensure_future(said(bodies.child("on", 10**9))) for _ in range(4)]
        waiting = asyncio.ensure_future(said(bodies.child("later", 2)))
        kill(await full(runtime, bodies.child, 4))
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, WorkerLost), result
        assert await waiting == ["later"] * 2
        assert runtime.restarts == 1
        assert runtime.snapshot()["child"].outcomes == {"failed": 4, "ok": 1}

    run(body, bodies.child)


def test_the_other_process_serves_on() -> None:
    async def body(runtime: ps.Runtime) -> None:
        calls = [asyncio.ensure_future(said(bodies.children("on", 10**9))) for _ in range(4)]
        executor = await full(runtime, bodies.children, 4)
        os.kill(next(iter(executor.processes)), signal.SIGKILL)
        done, left = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
        while len(done) < 2:
            more, left = await asyncio.wait(left, return_when=asyncio.FIRST_EXCEPTION)
            done |= more
        assert len(left) == 2
        assert await said(bodies.children("next", 1)) == ["next"]
        for call in left:
            call.cancel()

    run(body, bodies.children)


def test_safe_answers_are_tried_again() -> None:
    async def body(runtime: ps.Runtime) -> None:
        calls = [bodies.again(f"w{n}", 3000).start() for n in range(6)]
        kill(await full(runtime, bodies.again, 4))
        assert await asyncio.gather(*calls) == [f"w{n}" for n in range(6)]
        assert runtime.restarts == 1

    run(body, bodies.again)


def test_a_step_that_hangs_is_ended() -> None:
    async def body(runtime: ps.Runtime) -> None:
        with pytest.raises(ProgressTimeout):
            await said(bodies.moody("hang"))
        with pytest.raises(ProgressTimeout):
            await said(bodies.moody("stop"))
        executor: Any = runtime.bindings[bodies.moody].executor
        executor._limit = 60.0  # from here on a busy machine may let them wait
        while runtime.restarts < 2 or any(r.child is None or r.verdict is not None for r in executor.replicas):
            await asyncio.sleep(0.001)
        assert await asyncio.gather(*(said(bodies.moody("w", 2)) for _ in range(9))) == [["w"] * 2] * 9

    run(body, bodies.moody)


def test_a_step_that_nobody_wants_is_ended_as_well(tmp_path: Path) -> None:
    mark = tmp_path / "hangs"

    async def body(runtime: ps.Runtime) -> None:
        call = asyncio.ensure_future(said(bodies.impatient(f"hang {mark}")))
        executor = await full(runtime, bodies.impatient, 1)
        while not mark.exists():  # else it is let out before the step
            await asyncio.sleep(0.001)
        call.cancel()
        while not runtime.restarts:
            await asyncio.sleep(0.001)
        assert await said(bodies.impatient("w", 1)) == ["w"]
        assert not executor.replicas[0].life._failures  # a kill on somebody's behalf is no failure of its own

    run(body, bodies.impatient)


def test_a_model_whose_readers_are_slow_is_not_expected_to_go_on() -> None:
    async def body(runtime: ps.Runtime) -> None:
        reading = aiter(bodies.child("slow", 500))
        assert await anext(reading) == "slow"
        (replica,) = (await full(runtime, bodies.child, 1)).replicas
        while replica.expected():
            await asyncio.sleep(0.001)
        assert [word async for word in reading] == ["slow"] * 499

    run(body, bodies.child)


def test_what_cannot_be_sent_fails_alone() -> None:
    async def body(runtime: ps.Runtime) -> None:
        others = [asyncio.ensure_future(said(bodies.unhurried("w", 200))) for _ in range(4)]
        with pytest.raises(BadResult, match="cannot leave its process"):
            await said(bodies.unhurried("lambda"))
        with pytest.raises(InvalidRequest, match="cannot be sent to its process"):
            await said(bodies.unhurried(lambda: None))
        assert await asyncio.gather(*others) == [["w"] * 200] * 4
        assert runtime.restarts == 0

    run(body, bodies.unhurried)


def test_a_last_item_that_cannot_be_sent_fails_alone() -> None:
    async def body(runtime: ps.Runtime) -> None:
        with pytest.raises(BadResult, match="cannot leave its process"):
            await bodies.last_moody("half lambda", 1)
        assert await bodies.last_moody("w", 1) == "w"

    run(body, bodies.last_moody)


def test_a_spent_budget_is_told() -> None:
    async def body(runtime: ps.Runtime) -> None:
        with pytest.raises(WorkerLost):
            await said(bodies.fragile("exit"))
        while runtime.ready("fragile"):
            await asyncio.sleep(0.001)
        with pytest.raises(ServiceError, match="no replica left"):
            await said(bodies.fragile("w", 1))

    run(body, bodies.fragile)


def test_a_warm_up_that_raises_is_heard_at_the_start() -> None:
    async def body(runtime: ps.Runtime) -> None:
        raise AssertionError("started")

    with pytest.raises(ValueError, match="times is negative"):
        run(body, bodies.cold)


def test_a_start_may_ask_another_service_as_its_own_request() -> None:
    async def body(runtime: ps.Runtime) -> None:
        async def ask(n: int) -> None:
            with ps.budget(tenant=f"t{n}"):
                assert await said(bodies.asking("w")) == [f"W!t{n}"]

        await asyncio.gather(*(ask(n) for n in range(5)))

    run(body, bodies.asking, bodies.shouted)


def test_big_items_go_through_shared_memory() -> None:
    async def body(runtime: ps.Runtime) -> None:
        async def paint(n: int) -> None:
            picture = np.full((512, 256), n)  # 1 MiB
            for k, item in enumerate(await said(bodies.pictures(picture, 5)), 1):
                assert item.shape == picture.shape and (item == n + k).all()

        await asyncio.gather(*(paint(n) for n in range(6)))

    run(body, bodies.pictures)


def test_a_grace_that_is_over_ends_streams_and_processes() -> None:
    async def main() -> None:
        runtime = ps.Runtime(bodies.child, grace=0.05)
        async with runtime:
            reading = asyncio.ensure_future(said(bodies.child("on", 10**9)))
            executor = await full(runtime, bodies.child, 1)
        with pytest.raises(ShuttingDown):
            await reading
        assert not executor.processes and not executor.seats

    asyncio.run(main())


@pytest.mark.parametrize("service", [bodies.renewed, bodies.renewed_alone], ids=lambda service: service.name)
def test_recycling_loses_nobody_and_never_stops_all(service: Any) -> None:
    async def body(runtime: ps.Runtime) -> None:
        executor: Any = runtime.bindings[service].executor
        most, seen, reds = 2 * len(executor.replicas), set(), 0

        async def one(times: int) -> None:
            nonlocal reds
            pids = await said(service(times))
            assert len(pids) == times and len(set(pids)) == 1
            seen.update(pids)
            reds += not runtime.ready(service.name)
            assert len(executor.processes) <= (1 if service is bodies.renewed_alone else most)

        while len(seen) < 6:
            await asyncio.gather(*(one(1 + n % 7) for n in range(12)))
        if service is bodies.renewed:
            assert not reds  # replicas take turns
        assert not executor.seats

    run(body, service)


def test_a_process_that_dies_while_it_closes_is_followed_by_its_successor() -> None:
    async def body(runtime: ps.Runtime) -> None:
        executor = runtime.bindings[bodies.renewed].executor
        for _ in range(6):
            await asyncio.gather(*(said(bodies.renewed(1)) for _ in range(4)))
        reading = [asyncio.ensure_future(said(bodies.renewed(10**9))) for _ in range(4)]
        closing = None
        while closing is None:
            closing = next((replica for replica in executor.replicas if replica.renewal.closing), None)
            await asyncio.sleep(0.001)
            if not closing:
                reading.append(asyncio.ensure_future(said(bodies.renewed(1))))
        old = closing.child.pid
        os.kill(old, signal.SIGKILL)
        while closing.child is None or closing.child.pid == old or closing.renewal.closing:
            await asyncio.sleep(0.001)
        for task in reading[:4]:
            task.cancel()
        await asyncio.wait(reading)
        assert {type(task.exception()) for task in reading if not task.cancelled()} <= {WorkerLost, type(None)}
        assert len(await said(bodies.renewed(3))) == 3

    run(body, bodies.renewed)


class Heard:
    """Stands in for a child, so that turns of the loop can be told apart: keeps what was said to it, by message."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, list[int], list[tuple[int, int]]]] = []

    def encode(self, number: int, units: Any) -> Encoded:
        return encode(RUN, number, units)

    def tell(self, frames: list[Encoded], left: list[int], read: list[tuple[int, int]]) -> None:
        self.messages.append((len(frames), left, read))


class Step:
    """A frame of a step."""

    def __init__(self, *message: Any) -> None:
        self.message = message

    def load(self) -> Any:
        return self.message


def test_a_turn_of_the_loop_is_one_message_and_never_of_a_request_that_has_ended() -> None:
    async def main() -> None:
        host, loop, body = Host(), asyncio.get_running_loop(), bodies.child.body
        executor = ProcessSlotsExecutor(body, host, loop, ps.Slots(2), ps.Process(), 1, buffer=4, progress_timeout=60.0)
        host.executor, host.acknowledge = executor, False
        replica, child = executor.replicas[0], Heard()
        replica.child = child  # type: ignore[assignment]
        a, b = host.run(work("a", 9, replica=0)), host.run(work("b", 9, replica=1))
        executor.resume(a)
        executor.resume(a)
        executor.cancel(b)
        await asyncio.sleep(0)
        assert child.messages == [(2, [1], [(0, 2)])]
        executor.resume(a, 2)
        executor.cancel(a)
        replica.items(child, Step([0], ["a"], [(0, None, None)]))  # type: ignore[arg-type]
        assert a.results == [None]
        c = host.run(work("c", 9, replica=0))
        executor.cancel(a)
        executor.resume(a, 4)
        await asyncio.sleep(0)
        assert child.messages[1:] == [(1, [], [])]
        replica.lose(WorkerLost("gone"), again=True)
        assert isinstance(b.results[0], WorkerLost) and isinstance(c.results[0], WorkerLost)
        assert not executor.seats

    asyncio.run(main())


class Storm:
    """One seed's readers, who come, read, dawdle and leave, and what befalls the processes meanwhile."""

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
        for _ in range(12):
            dice = self.rng.random()
            word = "w" if dice > 0.03 else self.rng.choice(("exit", "abort", "stop", "hang", "lambda", "explode", "fail"))
            self.begun += 1
            self.ended[await self.read(word, self.rng.randrange(60), self.rng.random())] += 1

    async def read(self, word: str, times: int, leaves: float) -> str:
        got = 0
        try:
            async for item in bodies.moody(word, times):
                assert item == word
                got += 1
                if self.rng.random() < 0.1:
                    await asyncio.sleep(0.002)  # the model runs ahead, and pauses
                if self.rng.random() < 0.02 * leaves:
                    return "left"
        except (WorkerLost, ProgressTimeout, BadResult, RuntimeError, KeyError) as error:
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
def test_a_storm_of_joins_leaves_reads_and_kills(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_life, "PAUSES", (0.0, 0.01))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    storm = Storm(seed)
    asyncio.run(storm.run())
    gc.collect()
    assert storm.ended["ok"] > storm.begun / 3, storm.ended
    assert len(os.listdir("/proc/self/fd")) == before, storm.ended
