"""The app under any ASGI server, or mounted in Starlette or FastAPI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from penstock.http.bridge import match
from penstock.http.handler import Handler
from penstock.http.message import Answer, Request, Response
from penstock.http.problems import Fault, problem_response
from penstock.runtime import App, Runtime
from penstock.runtime.app import ASGIApp, Receive, Scope, Send


_PATIENT = 0.025  # seconds until a client's departure is watched for


def application(app: App) -> ASGIApp:
    """The ASGI side of `app`. Under `lifespan` the runtime starts and stops with the server; without, at first use."""
    side = _Side(app)
    return side.asgi


class _Side:
    def __init__(self, app: App) -> None:
        self.app = app
        self.handler: Handler | None = None
        self.lock: asyncio.Lock | None = None

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        if self.app.mounts:
            found = match(self.app, scope["path"])
            if found is not None:
                prefix, other = found
                await other({**scope, "root_path": scope.get("root_path", "") + prefix}, receive, send)
                return
        handler = self.handler or await self._start()
        request = await _request(scope, receive, self.app.max_body)
        if request is None:
            return
        answer: Any = problem_response(request) if isinstance(request, Fault) else handler(request)
        if type(answer) is Response:
            await _whole(send, answer, request)
            return
        await _watched(answer, receive, send, request)

    async def _start(self) -> Handler:
        if self.lock is None:
            self.lock = asyncio.Lock()
        async with self.lock:
            if self.handler is None:
                runtime = Runtime(self.app)
                await runtime.start()
                self.handler = Handler(self.app, runtime)
            return self.handler

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            handler = await self._start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.handler = None
        handler.stop()
        await handler.runtime.stop()
        await send({"type": "lifespan.shutdown.complete"})


async def _request(scope: Scope, receive: Receive, limit: int) -> Request | Fault | None:
    message = await receive()
    body = message.get("body", b"")
    if message.get("more_body"):
        pieces = bytearray(body)
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces += message.get("body", b"")
            if len(pieces) > limit:
                return Fault(413, f"The body is larger than the limit of {limit} bytes.")
        body = bytes(pieces)
    if message["type"] == "http.disconnect":
        return None
    if len(body) > limit:
        return Fault(413, f"The body is larger than the limit of {limit} bytes.")
    root = scope.get("root_path", "")
    path = scope["path"]
    if root and path.startswith(root):
        path = path[len(root) :] or "/"
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return Request(scope["method"], path, scope.get("query_string", b""), headers, body)


class _Departure:
    """Notices that the client has gone, and cancels the task that answers it.

    ASGI tells only who asks, so somebody must wait in `receive`; not for the many answers that take no time.
    """

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.gone = False
        self.task = asyncio.current_task()
        self.asking: asyncio.Task[None] | None = None
        self.timer = asyncio.get_running_loop().call_later(_PATIENT, self._ask)

    def _ask(self) -> None:
        self.asking = asyncio.ensure_future(self._wait())

    async def _wait(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        self.timer.cancel()
        if self.asking is not None:
            self.asking.cancel()


async def _watched(answer: Any, receive: Receive, send: Send, request: Any) -> None:
    """Answer, and stop at once if the client goes away meanwhile."""
    departure = _Departure(receive)
    try:
        got: Answer = await answer if asyncio.iscoroutine(answer) else answer
        if isinstance(got, Response):
            departure.close()
            await _whole(send, got, request)
        else:
            out = _Out(send, request.method == "HEAD")
            await got.run(out)
            await out.flush()
    except asyncio.CancelledError:
        if not departure.gone or departure.task is None or departure.task.uncancel():
            raise
    finally:
        departure.close()


def _pairs(head: bytes) -> list[tuple[bytes, bytes]]:
    return [tuple(line.split(b": ", 1)) for line in head.split(b"\r\n")[:-1]]  # type: ignore[misc]


async def _whole(send: Send, answer: Response, request: Any) -> None:
    headers = [*_pairs(answer.head), (b"content-length", b"%d" % len(answer.body))]
    if answer.status == 204:
        headers.pop()
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    body = b"" if getattr(request, "method", "") == "HEAD" else answer.body
    await send({"type": "http.response.body", "body": body})


class _Out:
    """The `Out` of a streamed answer over ASGI: every write is to be awaited."""

    def __init__(self, send: Send, bodiless: bool) -> None:
        self.send = send
        self.bodiless = bodiless
        self.last: Awaitable[None] | None = None

    def start(self, status: int, head: bytes, data: bytes = b"", *, sized: bool = False) -> Awaitable[None]:
        return self._start(status, head, data)

    async def _start(self, status: int, head: bytes, data: bytes) -> None:
        self.last = None
        await self.send({"type": "http.response.start", "status": status, "headers": _pairs(head)})
        if data:
            await self.send({"type": "http.response.body", "body": data, "more_body": True})

    def write(self, data: bytes) -> Awaitable[None]:
        return self.send({"type": "http.response.body", "body": data, "more_body": True})

    def end(self, data: bytes = b"") -> Awaitable[None] | None:
        self.last = self.send({"type": "http.response.body", "body": data})
        return None

    async def flush(self) -> None:
        if self.last is not None:
            await self.last
