"""Child processes for real: calls, streams, deaths."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import penstock as ps
from penstock.errors import BadResult, ServiceError, WorkerLost
from penstock.policy import RoundRobin

from . import bodies


def test_calls_batches_and_streams() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.double, bodies.halves, bodies.count, bodies.acount):
            assert await bodies.double(21) == 42
            answers = await asyncio.gather(*(bodies.halves(x) for x in range(6)), return_exceptions=True)
            assert answers[::2] == [0.0, 1.0, 2.0]
            assert all(isinstance(answer, ValueError) for answer in answers[1::2])
            assert [item async for item in bodies.count(500)] == list(range(500))
            assert [item async for item in bodies.acount(100)] == list(range(100))

    asyncio.run(main())


def test_a_death_loses_what_ran_and_the_replica_comes_back() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.die):
            for how in ("kill", "abort", "a signal without a name"):
                with pytest.raises(WorkerLost):
                    await bodies.die(how)
                assert await bodies.die("fine") == "fine"
            with pytest.raises(ServiceError, match="exit"):
                await bodies.die("exit")
            with pytest.raises(ValueError, match="a bad value"):
                await bodies.die("raise")
            with pytest.raises(BadResult):
                await bodies.die("lambda")
            assert await bodies.die("fine") == "fine"

    asyncio.run(main())


def test_a_service_with_a_cache_in_a_child() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.counted):
            answers = await asyncio.gather(*(bodies.counted("a") for _ in range(20)))
            assert len(set(map(tuple, answers))) == 1 and answers[0][1] == 1
            pid, _ = answers[0]
            assert tuple(await bodies.counted("b")) == (pid, 2)
            os.kill(pid, signal.SIGKILL)
            assert tuple(await bodies.counted("a")) == (pid, 1)  # what is kept outlives who made it
            # The new process dies of its first call: everybody who waits hears it, and it is not kept.
            lost = await asyncio.gather(*(bodies.counted("die") for _ in range(3)), return_exceptions=True)
            assert [type(error) for error in lost] == [WorkerLost] * 3
            fresh, first = await bodies.counted("c")
            assert fresh != pid and first == 1
            assert tuple(await bodies.counted("die")) == (fresh, 2)

    asyncio.run(main())


def test_a_killed_replica_among_two() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.whoami):
            pids = set(await asyncio.gather(*(bodies.whoami(i) for i in range(20))))
            os.kill(pids.pop(), signal.SIGKILL)
            answers = await asyncio.gather(*(bodies.whoami(i) for i in range(50)), return_exceptions=True)
            assert sum(isinstance(answer, WorkerLost) for answer in answers) <= 1
            assert sum(isinstance(answer, int) for answer in answers) >= 49

    asyncio.run(main())


def test_a_stream_that_is_left_stops_its_child_and_frees_it() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.count) as runtime:
            stream = bodies.count(10**9)
            async for item in stream:
                if item == 100:
                    break
            del stream
            assert [item async for item in bodies.count(3)] == [0, 1, 2]
            assert not runtime.busy()

    asyncio.run(main())


def test_a_constructor_that_raises_stops_the_start() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="no weights here"):
            async with ps.Runtime(bodies.broken):
                pass

    asyncio.run(main())


def test_a_route_chooses_between_children() -> None:
    pid = ps.service(bodies.pid, on=ps.Process(2), route=RoundRobin())

    async def main() -> None:
        async with ps.Runtime(pid):
            seen = [await pid() for _ in range(8)]
            assert seen[0] != seen[1] and seen == seen[:2] * 4

    asyncio.run(main())
