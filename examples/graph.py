"""A robot policy as a plain async function: vision and language side by side, then fusion, then a stream of actions.

The stages share two emulated devices; a control call has 500 ms, and every inner call inherits what is left of them.
"""

import asyncio
from collections.abc import AsyncIterator

import penstock as ps

devices = ps.Pool("devices", 2)


async def stage(x: float, seconds: float) -> float:
    await asyncio.sleep(seconds)  # stands for a kernel on the device
    return x


@ps.service(needs={devices: 1})
async def see(frame: float) -> float:
    return await stage(frame, 0.03)


@ps.service(needs={devices: 1})
async def read(instruction: str) -> float:
    return await stage(float(len(instruction)), 0.02)


@ps.service(needs={devices: 1})
async def fuse(scene: float, goal: float) -> float:
    return await stage(scene + goal, 0.01)


@ps.service(needs={devices: 1}, order=ps.EarliestDeadline())
async def act(state: float) -> list[float]:
    await asyncio.sleep(0.01)
    return [state * k for k in range(1, 4)]


@ps.service(within=0.5)
async def control(frame: float, instruction: str) -> AsyncIterator[float]:
    """One chunk of actions for one observation."""
    scene, goal = await ps.join(see(frame), read(instruction))
    for action in await act(await fuse(scene, goal)):
        yield action


app = ps.App(control, see, read, fuse, act)
