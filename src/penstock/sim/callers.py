"""Callers of a simulated application: everything that the public names let them do, at random."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from penstock.context import budget
from penstock.errors import PenstockError
from penstock.runtime import join, within
from penstock.runtime import map as map_calls
from penstock.service import Service
from penstock.sim.models import Bad

STREAMS = ("count", "tokens", "chain", "speaker")


class Callers:
    """`call(n, at)` is one caller's whole visit."""

    def __init__(self, random: Random, services: dict[str, Service[..., Any]], seen: Counter[str]) -> None:
        self.random = random
        self.unary = [each for name, each in services.items() if name not in STREAMS]
        self.streams = [services[name] for name in STREAMS]
        self.seen = seen
        self.ways: list[Callable[[int], Awaitable[None]]] = [
            self.waits,
            self.waits,
            self.starts,
            self.calls_back,
            self.leaves,
            self.cancels,
            self.never_waits,
            self.reads,
            self.reads,
            self.leaves_stream,
            self.maps,
            self.joins,
            self.within,
            self.floods,
            self.changes_mind,
        ]

    async def call(self, n: int, at: float) -> None:
        """Errors of the package and of bodies are answers; anything else breaks the storm."""
        random = self.random
        await asyncio.sleep(at)
        way = random.choice(self.ways)
        limits: dict[str, Any] = {"priority": random.choice((0, 0, 1, 2)), "tenant": random.choice("abc")}
        if random.random() < 0.4:
            limits["within"] = random.choice((0.005, 0.1, 1.0, 5.0))
        self.seen[f"caller {way.__name__}"] += 1
        try:
            with budget(**limits):
                await way(n)
        except (PenstockError, Bad) as error:
            self.seen[f"caller got {type(error).__name__}"] += 1

    def one(self) -> Any:
        return self.random.choice(self.unary)(self.random.randrange(40))

    async def waits(self, n: int) -> None:
        service, x = self.random.choice(self.unary), self.random.randrange(40)
        found = await service(x)
        if service.name == "painter" and found != 2 * x:
            raise AssertionError(f"painter({x}) is {found}")

    async def starts(self, n: int) -> None:
        call = self.one().start()
        await self.pause()
        await call

    async def calls_back(self, n: int) -> None:
        """Callbacks that raise disturb neither each other nor the answer."""
        told: list[str] = []

        def good(answer: object) -> None:
            told.append("success")
            raise RuntimeError("a callback")

        def bad(error: BaseException) -> None:
            told.append("error")
            raise RuntimeError("a callback")

        call = self.one().on_success(good).on_error(bad)
        try:
            await call
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(told) == 1, f"{call!r}: callbacks {told}"

    async def leaves(self, n: int) -> None:
        """The caller's task is cancelled at a random moment, as when a connection is lost."""
        await self._cancelled(asyncio.ensure_future(self.waits(n)))

    async def leaves_stream(self, n: int) -> None:
        await self._cancelled(asyncio.ensure_future(self.reads(n)))

    async def _cancelled(self, task: asyncio.Future[None]) -> None:
        await self.pause()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            self.seen["left"] += 1

    async def cancels(self, n: int) -> None:
        call = self.one().start()
        await self.pause()
        call.cancel()
        try:
            await call
        except asyncio.CancelledError:
            self.seen["cancelled"] += 1

    async def never_waits(self, n: int) -> None:
        call = self.one()
        await self.pause()
        call.cancel()
        assert call.status == "cancelled"

    async def reads(self, n: int) -> None:
        """A reader who is slow now and then, and who may break off."""
        random = self.random
        most = random.choice((0, 1, 3, 100))
        service, x = random.choice(self.streams), random.randrange(40)
        stream = service(x).__aiter__()
        got = 0
        try:
            async for item in stream:
                if service.name == "speaker" and item != 100 * x + got:
                    raise AssertionError(f"item {got} of speaker({x}) is {item}")
                got += 1
                if got > most:
                    self.seen["broke off"] += 1
                    break
                if random.random() < 0.3:
                    await self.pause()
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    async def maps(self, n: int) -> None:
        random = self.random
        calls = map_calls(
            random.choice(self.unary),
            range(random.randrange(9)),
            concurrency=random.choice((1, 3)),
            ordered=random.random() < 0.5,
            return_exceptions=random.random() < 0.7,
        )
        try:
            async for _ in calls:
                if random.random() < 0.1:
                    self.seen["map broken off"] += 1
                    break
        finally:
            await calls.aclose()  # type: ignore[attr-defined]

    async def joins(self, n: int) -> None:
        """All or nothing: once it is over, none of its calls goes on."""
        calls = [self.one() for _ in range(3)]
        try:
            await join(*calls)
        finally:
            assert not [call for call in calls if call.status in ("queued", "running")], f"left by a join: {calls}"

    async def floods(self, n: int) -> None:
        """More than fits at once, so that batches are full and the next ones wait at their replicas."""
        service = self.random.choice([each for each in self.unary if each.batched])
        calls = [service(self.random.randrange(20)).start() for _ in range(self.random.randrange(4, 30))]
        for call in calls:
            if self.random.random() < 0.1:
                await asyncio.sleep(0.001)
                call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def changes_mind(self, n: int) -> None:
        """Calls that are cancelled in the turn in which they arrive, so that work is stopped before its first step."""
        service = self.random.choice([each for each in self.unary if each.batched])
        calls = [service(self.random.randrange(20)).start() for _ in range(self.random.choice((1, 2, 4, 8)))]
        for _ in range(self.random.choice((0, 1, 2))):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def within(self, n: int) -> None:
        await within(self.random.choice((0.01, 1.0)), self.one)

    async def pause(self) -> None:
        await asyncio.sleep(self.random.choice((0.0, 0.0005, 0.01, 0.1, 1.0)))
