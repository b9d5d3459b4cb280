"""Bearer tokens before real servers: who may call, as whom, and how often."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from http_stand import Client, get

import penstock as ps
from penstock.errors import ConfigError, RateLimited
from penstock.http.gate import public
from penstock.http.serve import serving
from penstock.runtime.tokens import Tenant, Tokens, changed, issue, read, revoke

SEEN: list[tuple[str, int]] = []


@ps.service
async def hello(name: str) -> str:
    from penstock.context import current_budget

    SEEN.append((current_budget().tenant, current_budget().priority))
    return f"Hello, {name}!"


async def other(scope: Any, receive: Any, send: Any) -> None:
    """A mounted application."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"other"})


class Book:
    """A file of tokens: two tenants and an operator."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.json"
        with changed(self.path) as book:
            self.acme = issue(book, "acme-web", "acme")
            self.small = issue(book, "small", "small")
            self.operator = issue(book, "ops", "ops", operator=True)
            book.tenants["acme"] = Tenant(weight=3.0, priority=-1)
            book.tenants["small"] = Tenant(per_second=0.001, burst=2, priority=1)


@pytest.fixture
def book(tmp_path: Path) -> Book:
    SEEN.clear()
    return Book(tmp_path)


async def ask(client: Client, token: str = "", path: str = "/hello", *lines: str) -> tuple[int, bytes, Any]:
    """One request; the answer, and that a refusal is a problem."""
    bearer = [f"Authorization: Bearer {token}"] if token else []
    post = path == "/hello"
    client.send(get(path, *bearer, *lines, method="POST" if post else "GET", body=b'{"name": "a"}' if post else b""))
    status, head, body = await client.answer()
    if status >= 400:
        assert b"content-type: application/problem+json" in head
        assert json.loads(body)["status"] == status
    return status, head, body


def test_who_may_call_and_as_whom(go: Callable[[Awaitable[Any]], Any], book: Book) -> None:
    async def main() -> None:
        app = ps.App(hello, log=False, tokens=book.path, mounts={"/other": other}, cors=["http://page"])
        async with serving(app, grace=1.0) as server:
            client = Client(*await asyncio.open_connection("127.0.0.1", server.port))
            wrong = (book.acme[:-1] + ("A" if book.acme[-1] != "A" else "B"), "pst_000000000000_x", "x", "Ä")
            for token in ("", *wrong):
                status, head, _ = await ask(client, token)
                assert status == 401 and b'www-authenticate: Bearer realm="penstock"' in head
                assert len(token) < 50 or token.encode() not in head
            assert (await ask(client, "", "/other/x"))[0] == 401
            assert (await ask(client, "", "/nowhere"))[0] == 401
            for path in ("/healthz", "/readyz", "/readyz/hello"):
                assert (await ask(client, "", path))[0] == 200
            assert not SEEN

            assert (await ask(client, book.acme))[0] == 200
            assert (await ask(client, book.acme, "/hello", "X-Penstock-Tenant: acme", "X-Penstock-Priority: -1"))[0] == 200
            assert (await ask(client, book.small))[0] == 200
            assert (await ask(client, book.operator, "/hello", "X-Penstock-Tenant: acme", "X-Penstock-Priority: -9"))[0] == 200
            assert SEEN == [("acme", 0), ("acme", -1), ("small", 1), ("acme", -9)]
            assert (await ask(client, book.acme, "/other/x"))[2] == b"other"
            for lines in (["X-Penstock-Tenant: small"], ["X-Penstock-Priority: -2"]):
                assert (await ask(client, book.acme, "/hello", *lines))[0] == 403
            for path in ("/metrics", "/status"):
                assert (await ask(client, book.acme, path))[0] == 403
                assert (await ask(client, book.operator, path))[0] == 200
            document = json.loads((await ask(client, book.acme, "/openapi.json"))[2])
            assert document["security"] == [{"bearer": []}]

            client.send(get("/hello", "Origin: http://page", "Access-Control-Request-Method: POST", method="OPTIONS"))
            status, head, _ = await client.answer()
            assert status == 204 and b"authorization" in head
            client.send(get("/hello", "Origin: http://page", method="POST", body=b"{}"))
            status, head, _ = await client.answer()
            assert status == 401 and b"access-control-allow-origin: http://page" in head
            client.close()

    go(main())


def test_quotas_belong_to_tenants(go: Callable[[Awaitable[Any]], Any], book: Book) -> None:
    async def main() -> None:
        with changed(book.path) as pages:
            second = issue(pages, "small-too", "small")
        async with serving(ps.App(hello, log=False, tokens=book.path), grace=1.0) as server:
            client = Client(*await asyncio.open_connection("127.0.0.1", server.port))
            assert (await ask(client, book.small))[0] == 200
            assert (await ask(client, book.small, "/openapi.json"))[0] == 200  # no call
            assert (await ask(client, second))[0] == 200
            for token in (book.small, second):
                status, head, body = await ask(client, token)
                assert status == 429 and b"retry-after: " in head
                assert json.loads(body)["retry_after"] > 900
            assert (await ask(client, book.acme))[0] == 200
            client.close()

    go(main())


def test_weights_reach_the_fair_share_and_follow_the_file(book: Book) -> None:
    @ps.service(order=ps.FairShare(weights={"acme": 9.0}))
    async def own() -> None: ...

    async def main() -> None:
        app = ps.App(hello, own, tokens=book.path)
        assert app.tokens is not None
        async with ps.Runtime(app) as runtime:
            queue: Any = runtime.bindings[hello].station.queue
            ledger = queue.inner().ledger
            assert [ledger.weight(tenant) for tenant in ("acme", "small", "?")] == [3.0, 1.0, 1.0]
            assert runtime.bindings[own].station.queue.ledger.weight("acme") == 9.0  # type: ignore[attr-defined]
            with changed(book.path) as pages:
                pages.tenants["small"].weight = 5.0
            app.tokens.refresh(1e9)
            assert ledger.weight("small") == 5.0

    asyncio.run(main())


def test_the_file_is_followed_and_never_left_for_a_broken_one(book: Book, caplog: pytest.LogCaptureFixture) -> None:
    tokens = Tokens(book.path)
    tokens.charge("small", 0.0)
    now = 1.0
    with changed(book.path) as pages:
        revoke(pages, "acme-web")
        new = issue(pages, "new", "acme")
    assert tokens.find(book.acme) is not None
    tokens.refresh(now)
    assert tokens.find(book.acme) is None and tokens.find(new) is not None
    tokens.charge("small", now)
    with pytest.raises(RateLimited, match="small"):
        tokens.charge("small", now)  # what was used up before stays used
    book.path.write_text("{")
    tokens.refresh(now + 2)
    tokens.refresh(now + 4)
    assert tokens.find(new) is not None
    assert sum("is no file of tokens" in record.getMessage() for record in caplog.records) == 1
    book.path.unlink()
    tokens.refresh(now + 6)
    assert tokens.find(new) is not None
    with changed(book.path) as pages:
        pages.tenants["acme"] = Tenant()
    tokens.refresh(now + 8)
    assert tokens.find(new) is None


def test_only_hashes_are_kept_and_only_for_the_owner(book: Book) -> None:
    text = book.path.read_text()
    for token in (book.acme, book.small, book.operator):
        assert token.split("_", 2)[2] not in text and len(token) > 50
    assert os.stat(book.path).st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="already"), changed(book.path) as pages:
        issue(pages, "small", "else")
    assert book.path.read_text() == text and len(list(book.path.parent.iterdir())) == 1
    with changed(book.path) as pages:
        revoke(pages, "small")
    assert set(read(book.path).tenants) == {"acme", "ops"}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"tokens": {"x": {"name": "a", "tenant": "a", "sha256": "12"}}}',
        '{"tenants": {"a": {"weight": 0}}}',
        '{"tenants": {"a b": {}}}',
        '{"tenants": {"a": {"per_second": -1}}}',
        '{"tenants": {"a": {"quota": 1}}}',
    ],
)
def test_files_that_cannot_be_are_refused_at_the_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content)
    with pytest.raises(ConfigError):
        ps.App(hello, tokens=path)
    path.unlink()
    with pytest.raises(ConfigError, match="penstock token add"):
        ps.App(hello, tokens=path)


def test_mounted_as_asgi(book: Book) -> None:
    async def main() -> None:
        app = ps.App(hello, log=False, tokens=book.path, mounts={"/other": other})

        async def call(path: str, token: str = "", kind: str = "http") -> list[MutableMapping[str, Any]]:
            sent: list[MutableMapping[str, Any]] = []

            async def receive() -> MutableMapping[str, Any]:
                return {"type": "http.request", "body": b'{"name": "a"}'} if kind == "http" else {"type": "websocket.connect"}

            async def send(message: MutableMapping[str, Any]) -> None:
                sent.append(message)

            headers = [(b"authorization", b"Bearer " + token.encode())] if token else []
            await app({"type": kind, "method": "POST", "path": path, "headers": headers}, receive, send)
            return sent

        async with ps.Runtime(app):
            for path in ("/hello", "/other/x"):
                assert (await call(path))[0]["status"] == 401
                assert (await call(path, book.acme))[0]["status"] == 200
            assert (await call("/other/ws", kind="websocket")) == [{"type": "websocket.close", "code": 1008}]
            assert (await call("/other/ws", book.acme, "websocket")) == [{"type": "websocket.accept"}]

    asyncio.run(main())


def test_public_addresses() -> None:
    assert [host for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost") if public(host)] == []
    assert [host for host in ("0.0.0.0", "::", "", "192.0.2.1") if not public(host)] == []
