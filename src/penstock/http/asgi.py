"""The app under any ASGI server, or mounted in Starlette or FastAPI.

Frameworks do not tell a mounted application when they start and stop. So a runtime that is active on the loop is
used, as by `async with penstock.Runtime(app)` in the framework's own lifespan; if there is none, one is started at the
first request, and stopped with the loop. Invariant: a handler serves only the loop on which its runtime was started
(test clients make many).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Iterator
from types import CoroutineType
from typing import Any
from urllib.parse import quote

from penstock.executors.lookout import Lookout, lookout
from penstock.http.bridge import match
from penstock.http.departure import Departures, Watched
from penstock.http.handler import Handler
from penstock.http.lifespan import Lifespans
from penstock.http.message import Request, Response, pairs
from penstock.http.problems import Fault
from penstock.runtime import App, Runtime
from penstock.runtime.app import ASGIApp, Receive, Scope, Send
from penstock.service import runtime_of_loop

log = logging.getLogger("penstock.http")


def application(app: App) -> ASGIApp:
    """The ASGI side of `app`. Under `lifespan` the runtime starts and stops with the server."""
    return _Side(app).asgi


class _Side:
    def __init__(self, app: App) -> None:
        self.app = app
        self.handler: Handler | None = None
        self.loop: asyncio.AbstractEventLoop | None = None  # the handler's
        self.ours = False  # whether we started the runtime
        self.lifespans = Lifespans({})
        self.departures = Departures()
        self.lookout = Lookout()
        self.starting = asyncio.Lock()
        self.keeper: AsyncGenerator[None, None]

    def asgi(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        handler = self.handler
        if handler is None or self.app.mounts or scope["type"] != "http" or self.loop is not asyncio.get_running_loop():
            return self._any(scope, receive, send)
        root = scope.get("root_path", "")
        return self._http(handler, scope, _path(scope) if root else scope["path"], root, receive, send)

    async def _any(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        handler = self.handler
        if handler is None or self.loop is not asyncio.get_running_loop():
            handler = await self._start()
        path = _path(scope)
        found = match(self.app, path) if self.app.mounts and not handler.knows(path) else None
        if found is not None and (refusal := _bar(handler, scope, path)) is not None:
            if scope["type"] == "http":
                await _send(refusal, send)
            else:
                await receive()
                await send({"type": "websocket.close", "code": 1008})
        elif found is not None:
            prefix, other = found
            root = scope.get("root_path", "") + prefix
            await other({**scope, "root_path": root, "state": self.lifespans.state(prefix)}, receive, send)
        elif scope["type"] == "http":
            await self._http(handler, scope, path, scope.get("root_path", ""), receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, handler: Handler, scope: Scope, path: str, root: str, receive: Receive, send: Send) -> None:
        self.lookout.glance()
        message = await receive()
        body: Any = message.get("body", b"")
        if message["type"] != "http.request" or message.get("more_body") or len(body) > self.app.max_body:
            body = await _body(message, receive, self.app.max_body)
        method = scope["method"]
        answer: Any
        if body is None:
            return
        if isinstance(body, Fault):
            answer = handler.refuse(body, _headers(scope))
        else:
            request = Request(method, path, scope.get("query_string", b""), _headers(scope), body)
            if root:
                request.root = quote(root.rstrip("/"))
            answer = handler(request)
            if isinstance(answer, CoroutineType):
                try:
                    waits_for = answer.send(None)
                except StopIteration as end:
                    answer = end.value  # as most are: there is nothing to watch
                else:
                    answer = await Watched(self.departures, answer, receive).rest(waits_for)
        if isinstance(answer, Response):
            await _TURN  # what this turn of the loop answers is written in a row: readers wake once, not each
            await _send(answer, send, method == "HEAD")
        elif answer is not None:
            await Watched(self.departures, answer.run(_Out(send, method == "HEAD")), receive)

    async def _start(self) -> Handler:
        loop = asyncio.get_running_loop()
        if self.loop is not loop:
            self.loop, self.handler, self.starting, self.departures = loop, None, asyncio.Lock(), Departures()
            self.lookout = lookout(loop)
        async with self.starting:
            if self.handler is None:
                active = runtime_of_loop()
                self.ours = active is None
                if isinstance(active, Runtime):
                    runtime = active
                    await asyncio.gather(*(runtime.bind(service).start() for service in self.app.services.values()))
                else:
                    runtime = Runtime(self.app)
                    await runtime.start()
                    self.keeper = _stopped_with_the_loop(runtime)
                    await anext(self.keeper)
                self.lifespans = Lifespans(self.app.mounts)
                await self.lifespans.start()
                self.handler = Handler(self.app, runtime)
            return self.handler

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            handler = await self._start()
        except Exception as error:
            log.exception("%s cannot start", self.app.name)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.handler = None
        handler.stop()
        if self.ours:
            await handler.runtime.stop()
        await self.lifespans.stop()
        await send({"type": "lifespan.shutdown.complete"})


async def _stopped_with_the_loop(runtime: Runtime) -> AsyncGenerator[None, None]:
    """Whoever ends a loop in order (`asyncio.run`, servers, test clients) first closes its asynchronous generators."""
    try:
        yield
    finally:
        await runtime.stop(0.0)


def _bar(handler: Handler, scope: Scope, path: str) -> Response | None:
    """The refusal of a request to a mounted application, if the app has tokens."""
    if handler.gate is None:
        return None
    return handler.bar(Request(scope.get("method", "GET"), path, headers=_headers(scope)))


async def _send(answer: Response, send: Send, bodiless: bool = False) -> None:
    headers = answer.pairs()
    if answer.status != 204:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if bodiless else answer.body})


class _Turn:
    """`asyncio.sleep(0)`, at a quarter of its price."""

    def __await__(self) -> Iterator[None]:
        return iter(_ONCE)


_ONCE = (None,)
_TURN: Any = _Turn()


def _path(scope: Scope) -> str:
    """The path below where we are mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root):
        below = path[len(root) :]
        if not below or below[0] == "/" or root[-1] == "/":
            return below if below[:1] == "/" else f"/{below}"
    return path


def _headers(scope: Scope) -> dict[bytes, bytes]:
    pairs = scope["headers"]
    headers: dict[bytes, bytes] = dict(pairs)
    if len(headers) < len(pairs):
        headers = {}
        for name, value in pairs:
            headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


async def _body(message: Any, receive: Receive, limit: int) -> bytes | Fault | None:
    """The whole body, whose first message this is; None if the client left before its end."""
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        pieces = bytearray(body)
        while message.get("more_body") and len(pieces) <= limit:
            message = await receive()
            pieces += message.get("body", b"")
        body = bytes(pieces)
    if message["type"] == "http.disconnect":
        return None
    if len(body) > limit:
        return Fault(413, f"The body is larger than the limit of {limit} bytes.")
    return body


class _Out:
    """The `Out` of a streamed answer over ASGI: every write is to be awaited."""

    __slots__ = ("bodiless", "send")

    def __init__(self, send: Send, bodiless: bool) -> None:
        self.send = send
        self.bodiless = bodiless

    async def start(self, status: int, head: bytes, data: bytes = b"", *, sized: bool = False) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": pairs(head)})
        if data:
            await self.write(data)

    def write(self, data: bytes) -> Awaitable[None]:
        return self.send({"type": "http.response.body", "body": b"" if self.bodiless else data, "more_body": True})

    def end(self, data: bytes = b"") -> Awaitable[None]:
        return self.send({"type": "http.response.body", "body": b"" if self.bodiless else data})
