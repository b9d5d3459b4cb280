"""Mounting for real: the app inside Starlette and FastAPI under uvicorn, and they inside the app, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import fastapi
import pytest
import uvicorn
from fastapi.testclient import TestClient
from http_stand import get
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route
from test_handler import Site, problem, site, split

import penstock as ps

LONGEST = 20.0


class Work:
    """Services that report what happens to them, and wait until they are told to go on."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.gate = asyncio.Event()
        events, gate = self.events, self.gate

        class Model:
            def __init__(self) -> None:
                events.append("loaded")

            async def __call__(self, x: int) -> int:
                return x + 1

        async def wait() -> None:
            events.append("began")
            try:
                await gate.wait()
            finally:
                events.append("ended")

        async def gated() -> AsyncIterator[int]:
            try:
                yield 1
                await gate.wait()
                yield 2
            finally:
                events.append("ended")

        self.app = ps.App(ps.service(Model, name="model"), ps.service(wait), ps.service(gated), log=False)

    async def until(self, event: str) -> None:
        async with asyncio.timeout(LONGEST):
            while event not in self.events:  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@asynccontextmanager
async def under_uvicorn(app: Any, **options: Any) -> AsyncIterator[Site]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", **options))
    task = asyncio.ensure_future(server.serve())
    while not server.started:  # noqa: ASYNC110
        assert not task.done(), "it did not start"
        await asyncio.sleep(0.002)
    try:
        yield Site(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, LONGEST)


def in_starlette(work: Work) -> Starlette:
    async def plain(request: Any) -> JSONResponse:
        return JSONResponse({"ours": False})

    return Starlette(routes=[Route("/plain", plain), Mount("/models", app=work.app)])


def in_fastapi(work: Work) -> fastapi.FastAPI:
    web = fastapi.FastAPI()

    @web.get("/plain")
    async def plain() -> dict[str, bool]:
        return {"ours": False}

    web.mount("/models", work.app)
    return web


@pytest.mark.parametrize("make", [in_starlette, in_fastapi])
def test_inside_another_application(make: Callable[[Work], Any]) -> None:
    async def main() -> None:
        work = Work()
        async with under_uvicorn(make(work)) as s:
            assert json.loads((await s.ask("/plain"))[2]) == {"ours": False}
            assert (await s.post("/models/model", {"x": 1}))[2] == 2
            assert problem(await s.post("/models/model", {"x": "one"}))["status"] == 422
            assert problem(await s.ask("/models/none"))["status"] == 404
            assert "/model" in json.loads((await s.ask("/models/openapi.json"))[2])["paths"]
            assert work.events == ["loaded"]

            client = await s.client()  # the first event comes while the body waits
            client.send(get("/models/gated", "Connection: close", method="POST"))
            head = await client.until(b"data: 1\n\n")
            assert b"text/event-stream" in head
            work.gate.set()
            _, _, body = split(head + await client.all())
            assert body.endswith(b"data: 2\n\nevent: end\ndata\n\n")

            for path in ("/models/wait", "/models/gated"):
                work.gate.clear()
                work.events.clear()
                client = await s.client()
                client.send(get(path, method="POST"))
                if path.endswith("gated"):
                    await client.until(b"data: 1\n\n")
                else:
                    await work.until("began")
                client.close()
                await work.until("ended")

    asyncio.run(main())


def test_the_frameworks_lifespan_may_run_the_runtime() -> None:
    async def main() -> None:
        work, other = Work(), Work()
        other.app = ps.App(ps.service(other.app.services["model"].body.target, name="second"), log=False)

        @asynccontextmanager
        async def lifespan(web: fastapi.FastAPI) -> AsyncIterator[None]:
            async with ps.Runtime(work.app, grace=LONGEST):
                yield
            work.events.append("stopped")

        web = fastapi.FastAPI(lifespan=lifespan)
        web.mount("/models", work.app)
        web.mount("/others", other.app)

        @web.get("/inner")
        async def inner() -> int:
            return await work.app.services["model"](x=5)

        async with under_uvicorn(web) as s:
            assert work.events == ["loaded"]  # before the first request
            assert (await s.ask("/inner"))[2] == b"6"
            assert (await s.post("/models/model", {"x": 1}))[2] == 2
            assert (await s.post("/others/second", {"x": 1}))[2] == 2  # one runtime for both
            assert json.loads((await s.ask("/others/readyz"))[2])["ready"] is True
            client = await s.client()
            client.send(get("/models/wait", "Connection: close", method="POST"))
            await work.until("began")
            work.gate.set()
            assert b" 200 OK" in await client.all()
        assert work.events[-1] == "stopped"
        assert work.events.count("loaded") == 1

    asyncio.run(main())


def test_under_uvicorn_with_a_root_path() -> None:
    async def main() -> None:
        work = Work()
        async with under_uvicorn(work.app, root_path="/api") as s:
            assert work.events == ["loaded"]
            assert (await s.post("/model", {"x": 1}))[2] == 2
        async with under_uvicorn(in_starlette(Work()), root_path="/api") as s:
            assert (await s.post("/models/model", {"x": 1}))[2] == 2

    asyncio.run(main())


@pytest.mark.parametrize(("base", "root"), [("/api", "/api"), ("/api/", "/api"), ("/a <b>", "/a%20%3Cb%3E"), ("", "")])
def test_what_names_a_path_names_it_as_clients_reach_it(base: str, root: str) -> None:
    async def main() -> None:
        async with under_uvicorn(Work().app, root_path=base) as s:
            described = json.loads((await s.ask("/openapi.json"))[2])
            assert described.get("servers") == ([{"url": root}] if root else None)
            assert "/model" in described["paths"]
            index = (await s.ask("/", "Accept: text/html"))[2].decode()
            assert f'href="{root}/openapi.json"' in index and f"POST {root}/model<" in index
            assert json.loads((await s.ask("/"))[2])["services"]["model"]["path"] == f"{root}/model"
            near, none = [problem(await s.ask(path))["detail"] for path in ("/modle", "/zzz")]
            assert near == f"nothing is at {root}/modle; did you mean {root}/model?"
            assert none == f"nothing is at {root}/zzz; there is {root}/gated, {root}/model, {root}/wait"
            assert f"{root}/replicas/SERVICE" in problem(await s.ask("/replicas/none"))["detail"]

    asyncio.run(main())


def test_each_place_of_an_app_has_its_own_description() -> None:
    async def main() -> None:
        work = Work()
        web = Starlette(routes=[Mount("/a", app=work.app), Mount("/b", app=work.app)])
        async with under_uvicorn(web, root_path="/api") as s:
            for place in ("/a", "/b", "/a"):
                described = json.loads((await s.ask(f"{place}/openapi.json"))[2])
                assert described["servers"] == [{"url": f"/api{place}"}]

    asyncio.run(main())


def test_a_test_client_may_use_a_loop_for_each_request() -> None:
    work = Work()
    client = TestClient(in_fastapi(work))
    for x in range(3):
        assert client.post("/models/model", json={"x": x}).json() == x + 1
    with TestClient(work.app) as alone:
        assert alone.post("/model", json={"x": 1}).json() == 2


def test_an_application_that_cannot_start_is_told_to_the_server(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no weights")

        async def __call__(self) -> None:
            """Never called."""

    app = ps.App(ps.service(Broken, name="broken"), log=False)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    with pytest.raises(SystemExit):
        asyncio.run(server.serve())
    assert "no weights" in caplog.text


def other_application(events: list[str], gate: asyncio.Event) -> fastapi.FastAPI:
    @asynccontextmanager
    async def lifespan(web: fastapi.FastAPI) -> AsyncIterator[dict[str, Any]]:
        events.append("up")
        yield {"model": "loaded"}
        events.append("down")

    web = fastapi.FastAPI(lifespan=lifespan)

    @web.get("/state")
    async def state(request: fastapi.Request) -> dict[str, str]:
        return {"model": request.state.model, "url": str(request.url_for("state")), "root": request.scope["root_path"]}

    @web.post("/echo")
    async def echo(body: dict[str, int]) -> dict[str, int]:
        return body

    @web.get("/fails")
    async def fails() -> None:
        raise ValueError("a secret")

    @web.get("/wait")
    async def wait() -> None:
        events.append("began")
        try:
            await gate.wait()
        finally:
            events.append("ended")

    @web.get("/stream")
    async def stream() -> StreamingResponse:
        async def items() -> AsyncIterator[str]:
            try:
                yield "data: 1\n\n"
                await gate.wait()
                yield "data: 2\n\n"
            finally:
                events.append("ended")

        return StreamingResponse(items(), media_type="text/event-stream")

    @web.get("/later")
    async def later() -> JSONResponse:
        async def work() -> None:
            await gate.wait()
            events.append("done later")

        return JSONResponse("answered", background=BackgroundTask(work))

    return web


def test_fastapi_inside_the_app(caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []

    async def until(event: str) -> None:
        async with asyncio.timeout(LONGEST):
            while event not in events:  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def main() -> None:
        gate = asyncio.Event()
        work = Work()
        async with site(*work.app.services.values(), mounts={"/web": other_application(events, gate)}) as s:
            assert events == ["up"]
            assert (await s.post("/model", {"x": 1}))[2] == 2
            state = json.loads((await s.ask("/web/state"))[2])
            assert state == {"model": "loaded", "url": "http://a/web/state", "root": "/web"}
            assert (await s.post("/web/echo", {"a": 1}))[2] == {"a": 1}
            assert (await s.post("/web/echo", {"a": "b"}))[0] == 422
            assert (await s.ask("/web/none"))[0] == 404

            client = await s.client()  # Starlette answers 500 and raises again: the connection goes on
            client.send(get("/web/fails"))
            assert (await client.answer())[0] == 500
            client.send(get("/web/state"))
            assert (await client.answer())[0] == 200

            client.send(get("/web/stream", "Connection: close"))
            assert b"text/event-stream" in await client.until(b"data: 1\n\n")
            gate.set()
            assert b"data: 2\n\n" in await client.all()
            gate.clear()

            for path, sign in (("/web/wait", None), ("/web/stream", b"data: 1\n\n")):
                events.clear()
                client = await s.client()
                client.send(get(path))
                await (until("began") if sign is None else client.until(sign))
                client.close()
                await until("ended")

            client = await s.client()  # what is done after the answer is not the client's to cancel
            client.send(get("/web/later", "Connection: close"))
            assert (await client.all()).endswith(b'"answered"')
            client.close()
            assert (await s.post("/model", {"x": 1}))[2] == 2
            asyncio.get_running_loop().call_soon(gate.set)
        assert events[-2:] == ["done later", "down"]

    asyncio.run(main())
    assert "a secret" in caplog.text


def test_a_mounted_application_that_cannot_start_stops_the_server() -> None:
    @asynccontextmanager
    async def lifespan(web: fastapi.FastAPI) -> AsyncIterator[None]:
        raise ValueError("no database")
        yield

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"mounted at /web cannot start: ValueError: no database$"):
            async with site(mounts={"/web": fastapi.FastAPI(lifespan=lifespan)}):
                pass

    asyncio.run(main())
