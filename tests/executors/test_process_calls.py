"""Bodies in children that call other services."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

import penstock as ps
from penstock.errors import ConfigError, DeadlineExceeded, DeadlockRefused, WorkerLost

from . import bodies


def test_sync_async_and_batched_bodies_call_others() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.inner, bodies.outer, bodies.async_outer, bodies.batched_outer):
            assert await bodies.outer(4) == 41
            assert await bodies.async_outer(1) == [10, 20, 30]
            assert await asyncio.gather(*(bodies.batched_outer(x) for x in range(4))) == [0, 10, 20, 30]
            with pytest.raises(ValueError, match="negative"):
                await bodies.outer(-1)

    asyncio.run(main())


def test_budget_and_tenant_are_those_of_the_request() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.inner, bodies.outer):
            bodies.seen.clear()
            deadline = time.monotonic() + 50
            with ps.budget(deadline=deadline, tenant="acme"):
                assert await bodies.outer(1) == 11
                with pytest.raises(DeadlineExceeded):
                    await bodies.outer(5)  # which allows 50 ms for a call that never ends
            assert bodies.seen[0] == ("acme", pytest.approx(deadline))
            assert bodies.seen[1][1] < deadline

    asyncio.run(main())


def test_a_cancel_reaches_what_was_called() -> None:
    async def main() -> None:
        async with asyncio.timeout(60), ps.Runtime(bodies.inner, bodies.outer, bodies.async_outer) as runtime:
            for service in (bodies.outer, bodies.async_outer):
                bodies.seen.clear()
                call = service(99).start()
                while not bodies.seen:
                    await asyncio.sleep(0.001)
                call.cancel()
                while runtime.busy():
                    await asyncio.sleep(0.001)

    asyncio.run(main())


def test_a_death_cancels_what_was_called() -> None:
    async def main() -> None:
        async with asyncio.timeout(60), ps.Runtime(bodies.inner, bodies.outer) as runtime:
            bodies.seen.clear()
            call = bodies.outer(99).start()
            while not bodies.seen:
                await asyncio.sleep(0.001)
            executor: Any = runtime.bindings[bodies.outer].executor
            (pid,) = executor.processes
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(WorkerLost):
                await call
            assert not runtime.busy()

    asyncio.run(main())


def test_a_circle_is_refused_and_a_stranger_too() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.itself, bodies.unlisted, bodies.big_outer, bodies.echo):
            with pytest.raises(DeadlockRefused):
                await bodies.itself(1)
            with pytest.raises(ConfigError, match="list it"):
                await bodies.unlisted(1)
            assert await bodies.big_outer(300_000) == 300_000  # there and back twice, by shared memory

    asyncio.run(main())
