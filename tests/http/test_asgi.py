"""The app as an ASGI application, driven by hand and under uvicorn; and other applications mounted in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from http_stand import get
from test_handler import SERVICES, Site, add, count, problem, site, split

import penstock as ps
from penstock.http import stream
from penstock.service import runtime_of_loop

Go = Callable[[Awaitable[Any]], Any]
LONGEST = 20.0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LONGEST):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class Driver:
    """One request to an ASGI application, by hand."""

    def __init__(self, app: Any, path: str, body: bytes = b"", method: str = "POST", **scope: Any) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.pieces = [body[i : i + 10] for i in range(0, len(body), 10)] or [b""]
        headers = [(b"host", b"a"), (b"content-type", b"application/json"), *scope.pop("headers", ())]
        self.scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers, **scope}
        self.task = asyncio.ensure_future(app(self.scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        if self.pieces:
            piece = self.pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        self.sent.append(message)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        await asyncio.wait_for(self.task, LONGEST)
        start, *rest = self.sent
        assert start["type"] == "http.response.start"
        assert [bool(message.get("more_body")) for message in rest] == [True] * (len(rest) - 1) + [False]
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], headers, b"".join(message.get("body", b"") for message in rest)


@asynccontextmanager
async def living(app: Any) -> AsyncIterator[None]:
    """As a server does it: startup, and shutdown at the end."""
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.ensure_future(app({"type": "lifespan"}, inbox.get, outbox.put))
    inbox.put_nowait({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    try:
        yield
    finally:
        inbox.put_nowait({"type": "lifespan.shutdown"})
        assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
        await task


def test_asgi(go: Go) -> None:
    async def main() -> None:
        app = ps.App(*SERVICES, log=False, max_body=1000)
        async with living(app):
            status, headers, body = await Driver(app, "/add", b'{"x":          1}').answer()
            assert (status, body, headers["content-length"]) == (200, b"3", "1")
            assert "x-request-id" in headers
            assert (await Driver(app, "/add", method="HEAD", query_string=b"x=1").answer())[2] == b""
            assert problem(await Driver(app, "/add", b"{").answer())["status"] == 400
            assert problem(await Driver(app, "/none").answer())["status"] == 404
            assert problem(await Driver(app, "/plain", b" " * 2000).answer())["status"] == 413
            assert (await Driver(app, "/add", method="OPTIONS").answer())[0] == 204
            same = [(b"accept", b"text/html"), (b"accept", b"application/msgpack")]
            assert (await Driver(app, "/add", b'{"x":1}', headers=same).answer())[1]["content-type"] == "application/msgpack"
            assert (await Driver(app, "/sub/add", b'{"x":1}', root_path="/sub").answer())[2] == b"3"

    go(main())


@pytest.mark.parametrize(("n", "parts"), [(3, 3), (0, 0)])
def test_streams(go: Go, n: int, parts: int) -> None:
    async def main() -> None:
        app = ps.App(count, log=False)
        async with living(app):
            status, headers, body = await Driver(app, "/count", b'{"n": %d}' % n).answer()
            assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            assert body.startswith(b"retry: 3000\n\n")
            assert body.endswith(b"event: end\ndata\n\n")
            assert body.count(b"data:") == parts

    go(main())


def test_streams_that_fail(go: Go) -> None:
    async def main() -> None:
        app = ps.App(count, log=False)
        async with living(app):
            assert problem(await Driver(app, "/count", b'{"n": -1}').answer())["status"] == 500
            assert b"event: error\n" in (await Driver(app, "/count", b'{"n": 101}').answer())[2]

    go(main())


def test_heartbeats(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream.Heartbeats.__init__, "__defaults__", (0.02,))

    async def main() -> None:
        gates = [asyncio.Event(), asyncio.Event()]

        @ps.service
        async def slow() -> AsyncIterator[int]:
            await gates[0].wait()
            yield 1
            await gates[1].wait()

        app = ps.App(slow, log=False)
        async with living(app):
            driver = Driver(app, "/slow")
            for gate in gates:
                seen = len(driver.sent)
                while b"".join(m.get("body", b"") for m in driver.sent[seen:]).count(b":\n\n") < 2:
                    assert not driver.task.done()
                    await asyncio.sleep(0.002)
                gate.set()
            body = (await driver.answer())[2]
            before, item, after = body.partition(b"id: 0\ndata: 1\n\n")
            assert item
            assert before.count(b":\n\n") >= 2
            assert after.count(b":\n\n") >= 2

    go(main())


def test_a_client_that_leaves_cancels_its_call(go: Go) -> None:
    events: list[str] = []

    @ps.service
    async def body() -> None:
        events.append("began")
        try:
            await asyncio.sleep(30)
        finally:
            events.append("ended")

    @ps.service
    async def items() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.01)
        finally:
            events.append("ended")

    async def main() -> None:
        app = ps.App(body, items, log=False)
        async with living(app):
            for path in ("/body", "/items"):
                events.clear()
                driver = Driver(app, path)
                await until(lambda driver=driver: events or driver.sent)
                driver.gone.set()
                await asyncio.wait_for(driver.task, LONGEST)
                assert events[-1] == "ended"

    go(main())


def test_a_cancelled_server_task_stays_cancelled(go: Go) -> None:
    async def main() -> None:
        app = ps.App(count, log=False)
        async with living(app):
            driver = Driver(app, "/count", b'{"n": 50, "gap": 1}')
            await until(lambda: runtime_of_loop().busy())
            driver.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await driver.task

    go(main())


def test_without_lifespan_it_starts_at_the_first_request(go: Go) -> None:
    async def main() -> None:
        app = ps.App(add, log=False)
        answers = await asyncio.gather(*(Driver(app, "/add", b'{"x": 1}').answer() for _ in range(5)))
        assert [body for _, _, body in answers] == [b"3"] * 5

    go(main())


def test_without_lifespan_it_stops_with_the_loop() -> None:
    async def main() -> None:
        app = ps.App(add, log=False)
        assert (await Driver(app, "/add", b'{"x": 1}').answer())[2] == b"3"

    asyncio.run(main())
    with ps.Runtime(add):
        assert add.submit(1).result(5) == 3  # not by the runtime of the loop that has ended


class Mounted:
    """A small ASGI application."""

    def __init__(self) -> None:
        self.life: list[str] = []
        self.waiting = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                kind = (await receive())["type"]
                self.life.append(kind)
                await send({"type": f"{kind}.complete"})
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            return
        message = await receive()
        path = scope["path"][len(scope["root_path"]) :]
        if path == "/wait":
            self.waiting = True
            await receive()
        headers = [(b"Content-Type", b"text/plain")]
        if path == "/inject":
            headers.append((b"x", b"a\r\nb: c"))
        if path == "/sized":
            headers.append((b"content-length", b"6"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in (scope["method"].encode(), message["body"]):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if path != "/unended":
            await send({"type": "http.response.body"})


def test_mounts_on_the_native_server(go: Go) -> None:
    async def main() -> None:
        other, root = Mounted(), Mounted()
        async with site(add, mounts={"/other": other, "/": root}) as s:
            assert other.life == ["lifespan.startup"]
            status, headers, body = await s.ask("/other/a", method="POST", body=b"abc")
            assert (status, headers["content-type"], body) == (200, "text/plain", b"POSTabc")
            assert "chunked" in headers["transfer-encoding"]
            status, headers, body = await s.ask("/other/sized", method="POST", body=b"ab")
            assert (headers["content-length"], body) == ("6", b"POSTab")
            assert (await s.ask("/elsewhere"))[2] == b"GET"
            assert (await s.ask("/add", method="POST", body=b'{"x": 1}'))[2] == b"3"
            assert json.loads((await s.ask("/healthz"))[2])["status"] == "ok"
            assert (await s.ask("/other/inject"))[0] == 500
            client = await s.client()
            client.send(get("/other/unended"))
            assert b"0\r\n\r\n" not in await client.all()
            client = await s.client()
            client.send(get("/other/wait"))
            await until(lambda: other.waiting)
            client.close()
        assert other.life == root.life == ["lifespan.startup", "lifespan.shutdown"]

    go(main())


def test_mounts_under_asgi(go: Go) -> None:
    async def main() -> None:
        other = Mounted()
        app = ps.App(add, log=False, mounts={"/other": other})
        async with living(app):
            assert (await Driver(app, "/other/a", b"abc").answer())[2] == b"POSTabc"
            assert (await Driver(app, "/sub/other/a", b"abc", root_path="/sub").answer())[2] == b"POSTabc"
            assert (await Driver(app, "/add", b'{"x": 1}').answer())[2] == b"3"
            for path, kind in (("/other/ws", "websocket.accept"), ("/ws", "websocket.close")):
                driver = Driver(app, path, type="websocket")
                await driver.task
                assert driver.sent[0]["type"] == kind
        assert other.life == ["lifespan.startup", "lifespan.shutdown"]

    go(main())


def test_under_uvicorn() -> None:
    uvicorn = pytest.importorskip("uvicorn")

    async def main() -> None:
        app = ps.App(*SERVICES, log=False)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        task = asyncio.ensure_future(server.serve())
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        s = Site(server.servers[0].sockets[0].getsockname()[1])
        assert (await s.post("/add", {"x": 1}))[2] == 3
        client = await s.client()
        client.send(get("/count?n=3", "Connection: close"))
        status, _, body = split(await client.all())
        assert (status, body.count(b"data:")) == (200, 3)
        server.should_exit = True
        await asyncio.wait_for(task, LONGEST)

    asyncio.run(main())
