"""What becomes of replicas that die, hang, run out of memory or are replaced, and of the requests that they had."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import penstock as ps
from penstock.errors import InvalidRequest, PenstockError, ProgressTimeout, ServiceError, WorkerLost
from penstock.executors import process_life
from penstock.executors.process_trial import Trial

from . import bodies


def executor(runtime: ps.Runtime, service: Any) -> Any:
    return runtime.bindings[service].executor


@given(st.data(), st.integers(1, 500))
def test_a_trial_blames_the_guilty_and_no_one_else(data: st.DataObject, count: int) -> None:
    guilty = data.draw(st.sets(st.integers(0, count - 1), max_size=data.draw(st.sampled_from([1, count]))))
    trial, deaths, charged, bisected = Trial(count), 0, 0, 0
    while (part := trial.part()) is not None:
        if guilty.intersection(part):
            deaths += 1
            charged += not trial.deaths  # as a replica charges its restart budget
            trial.died(WorkerLost("died"))
            bisected += len(part) > 1 and trial.part() is not None
        else:
            trial.answered([n * n for n in part])
    steps = math.ceil(math.log2(count))
    assert bisected <= steps + 1 and deaths <= steps + 2
    assert charged == min(1, len(guilty))
    if len(guilty) == 1:
        assert deaths == bisected + 1 <= steps + 1
    failed = {n for n, result in enumerate(trial.results) if isinstance(result, WorkerLost)}
    assert guilty <= failed
    assert all(trial.results[n] == n * n for n in range(count) if n not in failed)
    if len(guilty) <= 1:
        assert failed == guilty


@given(st.data(), st.integers(1, 500))
def test_a_trial_ends_within_its_bound_whoever_kills(data: st.DataObject, count: int) -> None:
    """Deaths that have nothing to do with what runs, such as kills from outside."""
    trial, deaths, told = Trial(count), 0, []
    while (part := trial.part()) is not None:
        if data.draw(st.booleans()):
            deaths += 1
            trial.died(WorkerLost("died"))
        else:
            told += part
            trial.answered(list(part))
    assert deaths <= math.ceil(math.log2(count)) + 2
    assert len(told) == len(set(told))
    assert all(trial.results[n] == n if n in told else isinstance(trial.results[n], WorkerLost) for n in range(count))


def test_one_item_that_kills_fails_alone_and_is_charged_once() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.poisoned) as runtime:
            for _ in range(2):  # five deaths each, and two restarts are allowed
                items = [*range(11), 666, *range(12, 16)]
                answers = await asyncio.gather(*(bodies.poisoned(x) for x in items), return_exceptions=True)
                assert isinstance(answers.pop(11), WorkerLost)
                assert answers == [x + 1 for x in items if x < 100]
            assert runtime.snapshot()["poisoned"].in_flight == 0
            assert runtime.bindings[bodies.poisoned].station.time.samples == 0  # restarts are no service time

    asyncio.run(main())


def test_an_unsafe_batch_is_not_run_again() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.unsafe):
            answers = await asyncio.gather(*(bodies.unsafe(x) for x in (1, 2, 666)), return_exceptions=True)
            assert all(isinstance(answer, WorkerLost) for answer in answers)
            assert await bodies.unsafe(1) == 2

    asyncio.run(main())


def test_a_batch_that_is_killed_from_outside_is_answered() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.poisoned) as runtime:
            calls = [bodies.poisoned(x).start() for x in range(16)]
            await asyncio.sleep(0)
            (pid,) = executor(runtime, bodies.poisoned).processes
            os.kill(pid, signal.SIGKILL)
            assert await asyncio.gather(*calls) == list(range(1, 17))

    asyncio.run(main())


def test_a_spent_budget_gives_one_replica_up_and_the_other_serves_on() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.fragile) as runtime:
            with pytest.raises(WorkerLost):
                await bodies.fragile(666)
            for _ in range(20):
                assert await bodies.fragile(1) == 2
            assert runtime.ready("fragile")
            with pytest.raises(WorkerLost):
                await bodies.fragile(666)
            while runtime.bindings[bodies.fragile].station.broken is None:
                await asyncio.sleep(0.001)
            with pytest.raises(ServiceError, match="no replica left"):
                await bodies.fragile(1)
            assert not runtime.ready("fragile")

    asyncio.run(main())


def test_pauses_grow_while_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def launch(owner: Any) -> Any:
        raise RuntimeError("no such weights")

    monkeypatch.setattr(process_life.asyncio, "sleep", sleep)
    options, body = ps.Process(max_restarts=3), bodies.echo.body
    for served, expected in ((False, [0.1, 0.3, 1.0]), (True, [0.0, 0.1, 0.3])):
        life: Any = process_life.Life(SimpleNamespace(options=options, down=lambda index, error: None, body=body), 0)
        life.launch = launch
        life.fail(served)
        with pytest.raises(process_life.GivenUp, match=r"4 times .* no such weights"):
            asyncio.run(life.relaunch(None))
        assert pauses == expected
        pauses.clear()


def test_out_of_memory_halves_the_batch_and_is_remembered() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.hungry) as runtime:
            answers = await asyncio.gather(*(bodies.hungry(x) for x in range(16)))
            assert set(answers) == {4}
            answers = await asyncio.gather(*(bodies.hungry(x) for x in range(16)))
            assert max(answers) <= 5
            assert runtime.bindings[bodies.hungry].station.max_cost == 4.0
            pids = executor(runtime, bodies.hungry).processes
            with pytest.raises(bodies.OutOfMemoryError):
                await bodies.hungry(-1)
            assert executor(runtime, bodies.hungry).processes == pids

    asyncio.run(main())


@pytest.mark.parametrize("how", ["gil", "sleep", "stop"])
def test_a_replica_that_hangs_is_replaced(how: str) -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.hanging) as runtime:
            (before,) = executor(runtime, bodies.hanging).processes
            with pytest.raises(ProgressTimeout):
                await bodies.hanging(how)
            assert await bodies.hanging("") != before  # waits in the queue until the new one is up
            assert not runtime.busy() or runtime.snapshot()["hanging"].in_flight == 0

    asyncio.run(main())


def test_an_idle_replica_that_is_stopped_is_replaced() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.hanging) as runtime:
            processes = executor(runtime, bodies.hanging).processes
            (before,) = processes
            os.kill(before, signal.SIGSTOP)
            await processes[before].gone
            assert not runtime.ready("hanging")
            assert await bodies.hanging("") != before
            assert runtime.ready("hanging")

    asyncio.run(main())


@pytest.mark.parametrize("which", [0, 1])
def test_garbage_on_either_socket_ends_the_process(which: int) -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.babbles):
            with pytest.raises(WorkerLost, match="no message"):
                await bodies.babbles(which)

    asyncio.run(main())


def test_kill_after_a_cancel() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.overdue) as runtime:
            (before,) = executor(runtime, bodies.overdue).processes
            call = bodies.overdue("sleep").start()
            await asyncio.sleep(0)
            call.cancel()
            assert await bodies.overdue("") != before  # and it was not charged: max_restarts is 0

    asyncio.run(main())


def test_recycling_loses_nothing() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.recycled) as runtime:
            pids = []
            deadline = time.monotonic() + 20
            while len(set(pids)) < 3 and time.monotonic() < deadline:
                pids += await asyncio.gather(*(bodies.recycled("") for _ in range(4)))
            assert len(set(pids)) >= 3
            assert runtime.restarts == 0
            changes = sum(a != b for a, b in itertools.pairwise(pids))
            assert changes == len(set(pids)) - 1  # each served until the next was ready

    asyncio.run(main())


def test_recycling_on_a_device_never_has_two_at_once() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.on_device) as runtime:
            pids = []
            while len(set(pids)) < 3:
                pids += await asyncio.gather(*(bodies.on_device("") for _ in range(4)))
                assert len(executor(runtime, bodies.on_device).processes) <= 1
            assert all(pids.count(pid) >= 3 for pid in list(dict.fromkeys(pids))[:2])

    asyncio.run(main())


def test_a_replica_that_is_stopped_runs_its_exit_functions(tmp_path: Path) -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.leaves):
            assert await bodies.leaves(str(tmp_path / "note")) == 1

    asyncio.run(main())
    assert (tmp_path / "note").read_text() == "has left"


def test_warm_up_comes_before_the_first_call() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.warm):
            assert await bodies.warm(1) == [7, 1]
        with pytest.raises(RuntimeError, match="cold"):
            async with ps.Runtime(bodies.cold):
                pass

    asyncio.run(main())


def test_a_replica_that_does_not_load_in_time_stops_the_start() -> None:
    async def main() -> None:
        with pytest.raises(ServiceError, match="not loaded within"):
            async with ps.Runtime(bodies.sluggish):
                pass

    asyncio.run(main())


def test_an_input_that_cannot_be_sent_fails_alone() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.poisoned, bodies.echo):
            items: list[Any] = [1, 2, lambda: None, 4]
            answers = await asyncio.gather(*(bodies.poisoned(x) for x in items), return_exceptions=True)
            assert isinstance(answers.pop(2), InvalidRequest) and answers == [2, 3, 5]
            with pytest.raises(InvalidRequest):
                await bodies.echo(lambda: None)

    asyncio.run(main())


@pytest.mark.parametrize(
    "wrong", [{"replicas": 0}, {"recycle": 0}, {"kill_after": -1.0}, {"warmup": 3}, {"startup_timeout": 0}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PenstockError):
        ps.Process(**wrong)
