"""Arrays and bytes to children and back, and what is left of them when somebody dies."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import penstock as ps
from penstock.executors.child import arena

from . import bodies


def test_what_goes_in_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "SIZE", 16 << 20)

    async def main() -> None:
        rng = np.random.default_rng(0)
        async with ps.Runtime(bodies.echo):
            for value in (rng.random(300_000), rng.bytes(200_000), bytearray(rng.bytes(200_000)), {"image": rng.bytes(99_999)}):
                found = await bodies.echo(value)
                assert type(found) is type(value)
                assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value
            huge = rng.random(3 << 17)  # 3 MiB, twelve times: more than the arena holds, so the last take the socket
            answers = [await bodies.echo(huge) for _ in range(12)]
            assert all(np.array_equal(answer, huge) for answer in answers)

    asyncio.run(main())


def test_images_to_a_child_and_back() -> None:
    async def main() -> None:
        image = Image.linear_gradient("L").resize((1024, 768)).convert("RGB")
        async with ps.Runtime(bodies.echo):
            found = await bodies.echo({"images": [image, image.rotate(90)]})
            assert found == {"images": [image, image.rotate(90)]}

    asyncio.run(main())


def test_batches_of_arrays() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.scaled):
            answers = await asyncio.gather(*(bodies.scaled(np.full(20_000, float(n))) for n in range(40)))
            assert all((answer == 2.0 * n).all() for n, answer in enumerate(answers))

    asyncio.run(main())


def test_a_child_may_keep_what_it_got() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.keep):
            total = 0.0
            for n in range(1, 20):
                total += n
                assert await bodies.keep(np.full(20_000, float(n))) == total  # none was written over

    asyncio.run(main())


def test_answers_outlive_the_child_and_the_runtime() -> None:
    async def main() -> list[np.ndarray]:
        async with ps.Runtime(bodies.echo, bodies.whoami) as runtime:
            first = await bodies.echo(np.full(1 << 20, 1.0))
            executor = runtime.bindings[bodies.echo].executor
            (pid,) = executor.processes
            os.kill(pid, signal.SIGKILL)
            await executor.processes[pid].gone
            assert first.sum() == 1 << 20
            first += 1.0
            return [first, await bodies.echo(np.full(1 << 20, 3.0))]

    first, second = asyncio.run(main())
    gc.collect()
    assert first.sum() == 2 << 20 and second.sum() == 3 << 20
    second += first
    assert second[-1] == 5.0


def test_nothing_is_left_of_a_child() -> None:
    """No descriptor, no segment, no process; also not after deaths in the middle of big calls."""

    async def once(deaths: int) -> None:
        async with ps.Runtime(bodies.echo) as runtime:
            executor = runtime.bindings[bodies.echo].executor
            big = np.zeros(1 << 20)
            for _ in range(deaths):
                calls = [bodies.echo(big).start() for _ in range(3)]
                await asyncio.sleep(0)
                (pid,) = executor.processes
                os.kill(pid, signal.SIGKILL)
                await asyncio.gather(*calls, return_exceptions=True)
            assert (await bodies.echo(big)).shape == big.shape

    asyncio.run(once(0))
    gc.collect()
    before, segments = len(os.listdir("/proc/self/fd")), sorted(os.listdir("/dev/shm"))
    asyncio.run(once(3))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert sorted(os.listdir("/dev/shm")) == segments
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if b"child" in Path(f"/proc/{pid}/cmdline").read_bytes()]
