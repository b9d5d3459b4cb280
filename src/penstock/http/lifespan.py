"""The lifespan protocol towards mounted ASGI applications: started before the first request, stopped after the last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from penstock.runtime.app import ASGIApp

log = logging.getLogger("penstock.http")


class Lifespans:
    """Starts and stops applications, by mount prefix. One that does not speak the protocol is served without it."""

    def __init__(self, mounts: Mapping[str, ASGIApp]) -> None:
        self._lives = {prefix.rstrip("/"): _Life(app) for prefix, app in mounts.items()}

    async def start(self) -> None:
        """Raises RuntimeError if an application says that it cannot start."""
        for prefix, life in self._lives.items():
            failure = await life.start()
            if failure is not None:
                log.error("the application mounted at %s cannot start: %s", prefix or "/", failure)
                last = failure.strip().rpartition("\n")[2]
                raise RuntimeError(f"the application mounted at {prefix or '/'} cannot start: {last}")

    async def stop(self) -> None:
        for life in reversed(self._lives.values()):
            await life.stop()

    def state(self, prefix: str) -> dict[str, Any]:
        """What the application at this prefix keeps for its requests; each gets a copy of its own."""
        return dict(self._lives[prefix].state)


class _Life:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        self.inbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> str | None:
        """None, or why it cannot start."""
        self.task = asyncio.get_running_loop().create_task(self._run())
        answer = await self._say("lifespan.startup")
        return str(answer.get("message", "")) if answer.get("type") == "lifespan.startup.failed" else None

    async def stop(self) -> None:
        if self.task is not None and not self.task.done():
            await self._say("lifespan.shutdown")
            await asyncio.wait((self.task,), timeout=5.0)
            self.task.cancel()

    async def _say(self, kind: str) -> Any:
        self.inbox.put_nowait({"type": kind})
        return await self.answers.get()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self.app(scope, self.inbox.get, self.answers.put)
        except Exception as error:
            log.debug("a mounted application has no lifespan: %r", error)
        self.answers.put_nowait({})
