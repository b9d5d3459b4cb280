"""Other ASGI applications inside an app, on the native server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, MutableMapping
from typing import Any

from penstock.http.handler import Handler
from penstock.http.lifespan import Lifespans
from penstock.http.message import Answer, Out, Request
from penstock.runtime import App
from penstock.runtime.app import ASGIApp

log = logging.getLogger("penstock.http")

_SKIPPED = {b"content-length", b"transfer-encoding", b"connection", b"date"}


def match(app: App, path: str) -> tuple[str, ASGIApp] | None:
    """The mount with the longest prefix of this path."""
    best = ""
    for prefix in app.mounts:
        clean = prefix.rstrip("/")
        if (path == clean or path.startswith(clean + "/")) and len(prefix) > len(best):
            best = prefix
    return (best.rstrip("/"), app.mounts[best]) if best else None


class Mounted:
    """The handler with the mounts before it."""

    def __init__(self, app: App, handler: Handler, lifespans: Lifespans) -> None:
        self.app = app
        self.handler = handler
        self.lifespans = lifespans
        self.tasks: set[asyncio.Task[None]] = set()
        """What applications do after their answers (Starlette's background tasks)."""

    def __call__(self, request: Request) -> Answer | Coroutine[Any, Any, Answer]:
        found = None if self.handler.knows(request.path) else match(self.app, request.path)
        if found is None:
            return self.handler(request)
        return self.handler.bar(request) or _Bridged(self, request, *found)

    async def stop(self, within: float) -> None:
        """Wait for what is done after the answers, then end it."""
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=within)
        for task in self.tasks:
            task.cancel()

    def leave(self, task: asyncio.Task[None]) -> None:
        """Let it run on without its request."""
        self.tasks.add(task)
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a mounted application failed after its answer", exc_info=task.exception())


class _Bridged:
    """One request through an ASGI application, as a streamed answer."""

    def __init__(self, mounted: Mounted, request: Request, prefix: str, app: ASGIApp) -> None:
        self.mounted = mounted
        self.request = request
        self.prefix = prefix
        self.app = app
        self.out: Out | None = None
        self.head: tuple[int, bytes, bool] | None = None
        self.asked = False
        self.ended: asyncio.Future[None]

    async def run(self, out: Out) -> None:
        self.out = out
        request = self.request
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.0" if request.http10 else "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.path,
            "raw_path": request.raw_path,
            "root_path": self.prefix,
            "query_string": request.query,
            "headers": list(request.headers.items()),
            "client": request.client,
            "server": None,
            "state": self.mounted.lifespans.state(self.prefix),
        }
        self.ended = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._call(scope))
        try:
            await asyncio.wait((task, self.ended), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            self.mounted.leave(task)
            raise
        if task.done():
            task.result()
        else:
            self.mounted.leave(task)

    async def _call(self, scope: MutableMapping[str, Any]) -> None:
        await self.app(scope, self._receive, self._send)

    async def _receive(self) -> MutableMapping[str, Any]:
        if self.asked:
            await asyncio.Future()  # a client that goes away cancels this task
        self.asked = True
        return {"type": "http.request", "body": self.request.body, "more_body": False}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        assert self.out is not None
        if message["type"] == "http.response.start":
            lines = [(name.lower(), value) for name, value in message.get("headers", ())]
            length = b"".join(b"content-length: %b\r\n" % value for name, value in lines if name == b"content-length")
            head = b"".join(b"%b: %b\r\n" % pair for pair in lines if pair[0] not in _SKIPPED)
            if any(b"\r" in value or b"\n" in value or b"\0" in value for _, value in lines):
                raise ValueError("a mounted application answered with a header value that holds a line break")
            self.head = (message["status"], head + length, bool(length))
            return
        data = message.get("body", b"")
        waiting = None
        if self.head is not None:
            status, head, sized = self.head
            self.head = None
            waiting = self.out.start(status, head, data, sized=sized)
            data = b""
        elif data:
            waiting = self.out.write(data)
        if waiting is not None:
            await waiting
        if not message.get("more_body"):
            self.out.end()
            if not self.ended.done():
                self.ended.set_result(None)
