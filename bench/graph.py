#!/usr/bin/env python3
"""Rows I and J at a tenth of their size: the VLA graph on shared devices, and the four-stage loading pipeline.

python bench/graph.py
"""

from __future__ import annotations

import asyncio
import time

import penstock as ps

SCALE = 0.1
VISION, LANGUAGE, FUSION, ACTION = 3 * SCALE, 2 * SCALE, 1 * SCALE, 1 * SCALE


def stages(devices: ps.Pool | None, cores: ps.Pool | None) -> ps.Service:
    """See and read side by side, then fuse, then act. Without pools: one replica a stage."""

    def stage(name: str, seconds: float, pool: ps.Pool | None) -> ps.Service:
        def work(x: int) -> int:
            time.sleep(seconds)
            return x

        places = ps.Thread(1) if pool is None else ps.Thread(8)
        return ps.service(work, name=name, on=places, needs={pool: 1} if pool else None, start_timeout=600.0)

    see, read = stage("see", VISION, devices), stage("read", LANGUAGE, cores or devices)
    fuse, act = stage("fuse", FUSION, devices), stage("act", ACTION, devices)

    @ps.service(start_timeout=600.0, progress_timeout=600.0)
    async def control(x: int) -> int:
        await ps.join(see(x), read(x))
        return await act(await fuse(x))

    control.parts = (see, read, fuse, act)  # type: ignore[attr-defined]
    return control


async def case(name: str, control: ps.Service, n: int, bound: float) -> None:
    async with ps.Runtime(control, *control.parts, watch=False):  # type: ignore[attr-defined]
        began = time.perf_counter()
        await asyncio.gather(*(control(i) for i in range(n)))
        took = (time.perf_counter() - began) / SCALE
    print(f"{name:45} {n:4} requests {took:7.2f} s (scaled), bound {bound:6.2f}, ratio {took / bound:.3f}", flush=True)


async def loading(n: int = 100) -> None:
    def stage(name: str, seconds: float) -> ps.Service:
        def work(x: int) -> int:
            time.sleep(seconds * SCALE)
            return x

        return ps.service(work, name=name, on=ps.Thread(1))

    load, pre, forward, loss = stage("load", 0.1), stage("pre", 0.2), stage("forward", 0.5), stage("loss", 0.1)
    async with ps.Runtime(load, pre, forward, loss, watch=False):
        began = time.perf_counter()
        samples = ps.map(loss, ps.map(forward, ps.map(pre, ps.map(load, range(n)))))
        assert [sample async for sample in samples] == list(range(n))
        took = time.perf_counter() - began
    bound = n * 0.5 * SCALE
    print(f"loading, {n} samples: {took:.2f} s, forward-bound {bound:.2f} s, {bound / took:.3f} of it", flush=True)


async def main() -> None:
    await case("4 devices, all stages on devices", stages(ps.Pool("devices", 4), None), 3, 7.0)
    await case("4 devices, language on cores", stages(ps.Pool("devices", 4), ps.Pool("cores", 8)), 3, 5.0)
    await case("one replica a stage", stages(None, None), 3, 11.0)
    await case("one replica a stage", stages(None, None), 100, 302.0)
    await case("4 devices, all stages on devices", stages(ps.Pool("devices", 4), None), 100, 175.0)
    await loading()


if __name__ == "__main__":
    asyncio.run(main())
