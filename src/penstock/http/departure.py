"""Noticing under ASGI that a client has gone.

ASGI tells only who asks, so somebody must wait in `receive`. A task per request for it would cost more than most
answers, so one timer asks for those requests alone that have lasted a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE = 0.02  # seconds; a request is watched after one to two of these


class Departure:
    """One request that is being answered; its task is cancelled if the client goes."""

    __slots__ = ("asking", "gone", "receive", "seen", "task")

    def __init__(self, receive: Callable[[], Awaitable[Any]], task: asyncio.Task[Any] | None) -> None:
        self.receive = receive
        self.task = task
        self.gone = False
        self.seen = False
        self.asking: asyncio.Task[None] | None = None

    async def _ask(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self.task is not None:
            self.task.cancel()


class Departures:
    """All requests of an application that may have to be watched."""

    def __init__(self) -> None:
        self._fresh: dict[Departure, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, departure: Departure) -> None:
        self._fresh[departure] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._turn)

    def remove(self, departure: Departure) -> None:
        self._fresh.pop(departure, None)
        if departure.asking is not None:
            departure.asking.cancel()

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(PATIENCE, self._turn) if self._fresh else None
        for departure in list(self._fresh):
            if departure.seen:
                del self._fresh[departure]
                departure.asking = loop.create_task(departure._ask())
            departure.seen = True
