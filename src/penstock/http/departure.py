"""Noticing under ASGI that a client has gone.

ASGI tells only who asks, so somebody must wait in `receive`. A task per request for it would cost more than most
answers. So what is answered without waiting is not watched at all, and one timer asks for those requests alone that
have lasted a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import coroutine
from typing import Any

from penstock.http.steps import resumed

PATIENCE = 0.02  # seconds; a request is watched after one to two of these

Receive = Callable[[], Awaitable[Any]]


class Watched:
    """The answering of one request, to be awaited for what it returns. If the client goes it is cancelled, and gives None."""

    __slots__ = ("answering", "asking", "departures", "gone", "receive", "seen", "task")

    def __init__(self, departures: Departures, answering: Coroutine[Any, Any, Any], receive: Receive) -> None:
        self.departures = departures
        self.answering = answering
        self.receive = receive

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            waits_for = self.answering.send(None)
        except StopIteration as end:
            return end.value
        return (yield from self.rest(waits_for))

    @coroutine
    def rest(self, waits_for: Any) -> Generator[Any, Any, Any]:
        """The answering after its first step, which went as far as to wait for this."""
        self.gone = self.seen = False
        self.asking: asyncio.Task[None] | None = None
        self.task = asyncio.current_task()
        self.departures.add(self)
        try:
            return (yield from resumed(self.answering, waits_for))
        except asyncio.CancelledError:
            # Ours if the client has gone and nobody else has asked for it too.
            if not self.gone or self.task is None or self.task.uncancel():
                raise
            return None
        finally:
            self.departures.remove(self)
            self.task = None  # which holds what it was cancelled with, and so this frame

    async def ask(self) -> None:
        """Read on until the client has gone, then cancel the answering."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self.task is not None:
            self.task.cancel()


class Departures:
    """All requests of an application that may have to be watched."""

    def __init__(self) -> None:
        self._fresh: dict[Watched, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watched: Watched) -> None:
        self._fresh[watched] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self._turn)

    def remove(self, watched: Watched) -> None:
        self._fresh.pop(watched, None)
        if watched.asking is not None:
            watched.asking.cancel()

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(PATIENCE, self._turn) if self._fresh else None
        for watched in list(self._fresh):
            if watched.seen:
                del self._fresh[watched]
                watched.asking = loop.create_task(watched.ask())
            watched.seen = True
