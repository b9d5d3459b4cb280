"""However a request ends, nothing of it is left: neither for the cycle collector, which a server has run rarely, nor alive."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from collector import alive, garbage
from http_stand import Client, get
from test_mounting import under_uvicorn

import penstock as ps
from penstock.http.serve import serving
from penstock.service import runtime_of_loop

Go = Callable[[Awaitable[Any]], Any]
RUNS = 10
CLOSE = "Connection: close"


@ps.service
async def answer(how: str) -> int:
    if how == "fail":
        raise ValueError("broken")
    if how == "hang":
        await asyncio.Event().wait()
    return 1


@ps.service
async def events(how: str) -> AsyncIterator[int]:
    for n in range(3):
        yield n
    await asyncio.sleep(0)
    yield await answer(how)


@asynccontextmanager
async def native(app: ps.App) -> AsyncIterator[int]:
    async with serving(app) as server:
        yield server.port


@asynccontextmanager
async def uvicorn(app: ps.App) -> AsyncIterator[int]:
    async with under_uvicorn(app) as site:
        yield site.port


def post(path: str, how: str, *lines: str) -> bytes:
    return get(path, "Content-Type: application/json", *lines, method="POST", body=b'{"how": "%b"}' % how.encode())


async def whole(client: Client, request: bytes) -> None:
    client.send(request)
    await client.all()


async def aborted(client: Client, request: bytes) -> None:
    """The client leaves in the middle, by a reset."""
    await begun(client, request)
    client.writer.transport.abort()


async def closed(client: Client, request: bytes) -> None:
    """The client leaves in the middle, in order."""
    await begun(client, request)
    client.close()


async def begun(client: Client, request: bytes) -> None:
    client.send(request)
    if b"/events" in request:
        await client.until(b"data: 2\n")
    else:
        await until(lambda: runtime_of_loop().busy())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


USES: dict[str, tuple[Callable[[Client, bytes], Awaitable[None]], bytes]] = {
    "answered": (whole, post("/answer", "ok", CLOSE)),
    "failed": (whole, post("/answer", "fail", CLOSE)),
    "expired": (whole, post("/answer", "hang", "X-Penstock-Within: 0.01", CLOSE)),
    "wrong type": (whole, post("/answer", '", "how": 1, "x": "', CLOSE)),
    "left": (aborted, post("/answer", "hang")),
    "stream": (whole, post("/events", "ok", CLOSE)),
    "stream failed": (whole, post("/events", "fail", CLOSE)),
    "stream expired": (whole, post("/events", "hang", "X-Penstock-Within: 0.01", CLOSE)),
    "stream aborted": (aborted, post("/events", "hang")),
    "stream closed": (closed, post("/events", "hang")),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("server", [native, uvicorn])
def test_nothing_of_a_request_is_left(
    go: Go, server: Callable[[ps.App], AbstractAsyncContextManager[int]], use: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="penstock")  # pytest keeps all records, which hold tracebacks
    app = ps.App(answer, events, log=False)
    act, request = USES[use]

    async def some(port: int, count: int) -> None:
        for _ in range(count):
            client = Client(*await asyncio.open_connection("127.0.0.1", port))
            await act(client, request)
            client.close()
        await until(lambda: not runtime_of_loop().busy())
        log = runtime_of_loop().log
        log.flush()
        log.recent.clear()

    async def main() -> None:
        async with server(app) as port:
            await some(port, 3)
            with garbage() as found:
                await some(port, RUNS)
                left = await rest()
            assert not found
            assert not left

    async def rest() -> Counter[str]:
        """What is still alive when the last connections have had time to close."""
        for _ in range(100):
            left = alive()
            del left["Patience"]  # one a tenant, from when one of its callers first waited for a millisecond
            if not left:
                break
            await asyncio.sleep(0.02)
        return left

    go(main())
