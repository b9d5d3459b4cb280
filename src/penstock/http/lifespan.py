"""The lifespan protocol towards mounted ASGI applications: started before the first request, stopped after the last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from penstock.runtime.app import ASGIApp

log = logging.getLogger("penstock.http")


class Lifespans:
    """Starts and stops applications. One that does not speak the protocol is served without it."""

    def __init__(self, apps: Iterable[ASGIApp]) -> None:
        self._lives = [_Life(app) for app in apps]

    async def start(self) -> None:
        """Raises RuntimeError if an application says that it cannot start."""
        for life in self._lives:
            await life.start()

    async def stop(self) -> None:
        for life in reversed(self._lives):
            await life.stop()


class _Life:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.inbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self._run())
        answer = await self._say("lifespan.startup")
        if answer.get("type") == "lifespan.startup.failed":
            raise RuntimeError(f"a mounted application did not start: {answer.get('message', '')}")

    async def stop(self) -> None:
        if self.task is not None and not self.task.done():
            await self._say("lifespan.shutdown")
            await asyncio.wait((self.task,), timeout=5.0)
            self.task.cancel()

    async def _say(self, kind: str) -> Any:
        self.inbox.put_nowait({"type": kind})
        return await self.answers.get()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        try:
            await self.app(scope, self.inbox.get, self.answers.put)
        except Exception as error:
            log.debug("a mounted application has no lifespan: %r", error)
        self.answers.put_nowait({})
