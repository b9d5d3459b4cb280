"""Services over the native server: bodies and answers, negotiation, budgets, identity, problems, operations."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from http_stand import Client, get

import penstock as ps
from penstock.context import current_budget
from penstock.http.serve import serving

Go = Callable[[Awaitable[Any]], Any]


@ps.service(safe=True)
async def add(x: int, y: int = 2) -> int:
    """Add two numbers."""
    return x + y


@ps.service
def plain(text: str) -> dict[str, str]:
    return {"text": text}


@ps.service(safe=True)
async def count(n: int, gap: float = 0.0) -> AsyncIterator[dict[str, Any]]:
    """Count to n; -1 fails at once, above 100 fails after 3."""
    if n < 0:
        raise ValueError("a secret")
    for i in range(min(n, 3 if n > 100 else n)):
        await asyncio.sleep(gap)
        yield {"i": i, "text": "a\nb\u2028"}
    if n > 100:
        raise ValueError("a secret")


@ps.service
def count_in_thread(n: int) -> Iterator[int]:
    yield from range(n)


@ps.service
async def reverse(data: bytes, times: int = 1) -> bytes:
    return data[:: -1 if times % 2 else 1]


@ps.service
async def fail(kind: str) -> Any:
    if kind == "value":
        raise ValueError("a secret")
    if kind == "encode":
        return object()
    if kind == "exit":
        raise SystemExit(3)
    if kind == "cancel":
        raise asyncio.CancelledError
    if kind == "reset":
        raise ConnectionResetError("upstream")
    return None


@ps.service
async def look(hold: float = 0.0) -> dict[str, Any]:
    budget = current_budget()
    await asyncio.sleep(hold)
    return {"priority": budget.priority, "tenant": budget.tenant, "deadline": budget.deadline is not None}


@ps.service
async def stream_faults(kind: str) -> AsyncIterator[int]:
    yield 1
    if kind == "cancel":
        raise asyncio.CancelledError
    if kind == "reset":
        raise ConnectionResetError("upstream")
    if kind == "exit":
        raise SystemExit(3)
    yield object()  # type: ignore[misc]


SERVICES = (add, plain, count, count_in_thread, reverse, fail, look, stream_faults)


class Site:
    def __init__(self, port: int) -> None:
        self.port = port

    async def client(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24))

    async def ask(self, path: str, *lines: str, method: str = "GET", body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        client = await self.client()
        client.send(get(path, "Connection: close", *lines, method=method, body=body))
        status, headers, body = split(await client.all())
        client.close()
        return status, headers, body

    async def post(self, path: str, value: Any, *lines: str) -> tuple[int, dict[str, str], Any]:
        line = "Content-Type: application/json"
        status, headers, body = await self.ask(path, line, *lines, method="POST", body=json.dumps(value).encode())
        return (
            status,
            headers,
            json.loads(body) if "json" in headers["content-type"] and body[:1] in b'{["0123456789n' else body,
        )


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    if headers.get("transfer-encoding") == "chunked":
        pieces, rest = [], body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            pieces.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        body = b"".join(pieces)
    return int(lines[0].split(" ")[1]), headers, body


@asynccontextmanager
async def site(*services: Any, **options: Any) -> AsyncIterator[Site]:
    options.setdefault("log", False)
    app = ps.App(*(services or SERVICES), **options)
    async with serving(app, grace=0.5) as server:
        yield Site(server.port)


def problem(answer: tuple[int, dict[str, str], Any]) -> dict[str, Any]:
    status, headers, body = answer
    assert headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = json.loads(body) if isinstance(body, bytes) else body
    assert found["status"] == status
    assert found["title"]
    assert found["detail"]
    return found


def test_json(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            status, headers, body = await s.post("/add", {"x": 1})
            assert (status, body, headers["content-type"]) == (200, 3, "application/json")
            assert re.fullmatch(r"[0-9a-f]{16}", headers["x-request-id"])
            parts = re.findall(r"(\w+);dur=([\d.]+)", headers["server-timing"])
            assert [name for name, _ in parts] == ["queue", "batch", "run", "stream"]
            assert (await s.post("/plain", {"text": "\u00e9"}))[2] == {"text": "\u00e9"}
            assert (await s.ask("/add", method="POST", body=b'{"x": 5}'))[2] == b"7"  # no type given
            assert (await s.ask("/look", method="POST"))[0] == 200  # no body, no parameters needed
            assert (await s.ask("/add", "Content-Type: application/json; charset=utf-8", method="POST", body=b'{"x":1}'))[
                0
            ] == 200

    go(main())


def test_msgpack_and_bytes(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            data = msgspec.msgpack.encode({"x": 1, "y": 1})
            for name in ("application/msgpack", "application/x-msgpack"):
                status, headers, body = await s.ask(
                    "/add", f"Content-Type: {name}", f"Accept: {name}", method="POST", body=data
                )
                assert (status, headers["content-type"], msgspec.msgpack.decode(body)) == (
                    200,
                    "application/msgpack",
                    2,
                )
            for name in ("application/octet-stream", "image/png"):
                status, headers, body = await s.ask(
                    "/reverse?times=3", f"Content-Type: {name}", f"Accept: {name}", method="POST", body=b"\0abc"
                )
                assert (status, headers["content-type"], body) == (200, "application/octet-stream", b"cba\0")
                status, _, body = await s.ask("/reverse", f"Content-Type: {name}", method="POST")  # an empty file
                assert (status, body) == (200, b"")

    go(main())


def test_get(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            assert (await s.ask("/add?x=40"))[2] == b"42"
            status, headers, body = await s.ask("/add?x=40", method="HEAD")
            assert (status, headers["content-length"], body) == (200, "2", b"")
            answer = await s.ask("/plain?text=a")
            assert answer[1]["allow"] == "POST, OPTIONS"
            assert problem(answer)["status"] == 405
            assert (await s.ask("/add", method="OPTIONS"))[1]["allow"] == "GET, HEAD, POST, OPTIONS"
            assert problem(await s.ask("/add?x=1&z=1"))["status"] == 422
            assert problem(await s.ask("/add?x=%FF"))["status"] == 400

    go(main())


BAD = {
    "malformed": (b'{"x": ', 400),
    "NaN": (b'{"x": NaN}', 400),
    "not an object": (b"[1]", 422),
    "wrong type": (b'{"x": "1"}', 422),
    "missing": (b"{}", 422),
    "unknown": (b'{"x": 1, "z": 1}', 422),
    "not UTF-8": (b'{"x": "\xff"}', 422),
    "deep": (b"[" * 100_000, 400),
    "deep object": (b'{"x":' * 50_000, 400),
    "large number": (b'{"x": ' + b"9" * 5000 + b"}", 422),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies(go: Go, name: str) -> None:
    body, status = BAD[name]

    async def main() -> None:
        async with site() as s:
            answer = await s.ask("/add", "Content-Type: application/json", "X-Request-Id: abc", method="POST", body=body)
            found = problem(answer)
            assert found["status"] in (400, 422)
            assert found["status"] == status or name.startswith(("deep", "large"))
            assert found["instance"] == answer[1]["x-request-id"] == "abc"
            assert len(found["detail"]) < 1000
            assert (await s.post("/add", {"x": 1}))[2] == 3

    go(main())


def test_other_refusals(go: Go) -> None:
    async def main() -> None:
        async with site(max_body=1000) as s:
            found = problem(await s.ask("/nothing"))
            assert found["status"] == 404
            assert "add" in found["detail"]
            assert problem(await s.post("/plain", {"text": "a" * 1000}))["status"] == 413
            assert problem(await s.ask("/add", "Content-Type: text/csv", method="POST", body=b"1"))["status"] == 415
            assert problem(await s.post("/add", {"x": 1}, "Accept: image/png"))["status"] == 406
            assert problem(await s.post("/add", {"x": 1}, "Accept: application/json;q=0"))["status"] == 406
            assert problem(await s.ask("/healthz", method="POST"))["status"] == 405

    go(main())


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("application/msgpack;q=0.5, application/json", "application/json"),
        ("application/msgpack, application/json;q=0.5", "application/msgpack"),
        ("text/event-stream", "text/event-stream; charset=utf-8"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("", "application/json"),
        (", ,", "application/json"),
        ("application/json;q=0, */*", "application/msgpack"),
        ("*/*, application/json; q=0.0", "application/msgpack"),
        ("application/json;q=0.1, */*;q=0.2", "application/msgpack"),
        ("application/*;q=0, */*", "text/event-stream; charset=utf-8"),
        ("application/*;q=0, application/json;q=0.5", "application/json"),
        ("*/*, application/json", "application/json"),
        ("application/x-ndjson, application/jsonl;q=0.1", "application/x-ndjson"),
        ("application/json, */*;q=0", "application/json"),
        ("TEXT/*", "text/event-stream; charset=utf-8"),
        ("text/html, image/gif, *; q=.2, */*; q=.2", "application/json"),
    ],
)
def test_accept(go: Go, accept: str, kind: str) -> None:
    async def main() -> None:
        async with site() as s:
            assert (await s.post("/add", {"x": 1}, f"Accept: {accept}"))[1]["content-type"] == kind

    go(main())


REFUSED = (
    "application/json;q=0",
    "*/*;q=0",
    "text/*;q=0, application/*;q=0, */*",
    "*/*;q=nan",
    "*/*;q=1_0",
    "*/*;q=-1",
)


def test_what_is_excluded_is_not_answered(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            for accept in REFUSED:
                assert problem(await s.post("/add", {"x": 1}, f"Accept: {accept}"))["status"] == 406, accept
            assert (await s.ask("/count?n=1", "Accept: application/*"))[1]["content-type"] == "application/x-ndjson"
            assert problem(await s.ask("/count?n=1", "Accept: application/json"))["status"] == 406

    go(main())


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "GZIP", "x"])
def test_a_compressed_body_is_refused_by_name(go: Go, coding: str) -> None:
    async def main() -> None:
        async with site() as s:
            line = f"Content-Encoding: {coding}"
            for body in (gzip.compress(b'{"x": 1}'), b'{"x": 1}'):
                answer = await s.ask("/add", line, "Content-Type: application/json", method="POST", body=body)
                found = problem(answer)
                assert found["status"] == 415
                assert "Content-Encoding" in found["detail"] and repr(coding) in found["detail"]
                assert answer[1]["accept-encoding"] == "identity"
            assert problem(await s.ask("/reverse", line, "Content-Type: image/png", method="POST", body=b"a"))["status"] == 415
            assert problem(await s.ask("/count", line, method="POST", body=b"{}"))["status"] == 415
            assert problem(await s.ask("/replicas/add", line, method="PUT", body=b'{"count": 1}'))["status"] == 415
            for same in ("identity", "Identity", ""):
                assert (await s.post("/add", {"x": 1}, f"Content-Encoding: {same}"))[2] == 3

    go(main())


def test_the_hint_on_a_media_type_leads_to_an_answer(go: Go) -> None:
    """What `--json` of curl sends besides is an Accept that no stream can meet."""

    async def main() -> None:
        async with site() as s:
            form = "Content-Type: application/x-www-form-urlencoded"
            for path, json_too in (("/add", True), ("/count", False)):
                detail = problem(await s.ask(path, form, method="POST", body=b"{}"))["detail"]
                assert "-H 'content-type: application/json'" in detail
                assert ("--json" in detail) is json_too

    go(main())


def test_failures(go: Go, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with site() as s:
            for kind in ("value", "encode", "cancel", "reset", "exit"):
                found = problem(await s.post("/fail", {"kind": kind}, "X-Request-Id: the-id"))
                assert found["status"] == 500
                assert found["instance"] == "the-id"
                assert "a secret" not in str(found)
            assert (await s.post("/add", {"x": 1}))[2] == 3
        async with site(debug=True) as s:
            assert "a secret" in problem(await s.post("/fail", {"kind": "value"}))["detail"]

    go(main())
    record = next(r for r in caplog.records if "the-id" in r.getMessage())
    assert record.exc_info is not None
    assert "a secret" in str(record.exc_info[1])


def test_budget(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            lines = ("X-Penstock-Within: 5", "X-Penstock-Priority: -3", "X-Penstock-Tenant: acme")
            assert (await s.post("/look", {}, *lines))[2] == {"priority": -3, "tenant": "acme", "deadline": True}
            for seconds in ("10", "0.5e1", "1e+2", "007"):
                assert (await s.post("/look", {}, f"X-Penstock-Within: {seconds}"))[2]["deadline"] is True
            found = problem(await s.post("/look", {"hold": 5.0}, "X-Penstock-Within: 0.05"))
            assert found["status"] == 504
            for line in (
                "X-Penstock-Within: soon",
                "X-Penstock-Within: nan",
                "X-Penstock-Within: -1",
                "X-Penstock-Within: inf",
                "X-Penstock-Within: infinity",
                "X-Penstock-Within: 1_0",
                "X-Penstock-Within: +1",
                "X-Penstock-Within: \u00d9\u00a1",
                "X-Penstock-Within: 1.",
                "X-Penstock-Within: ",
                "X-Penstock-Within: 1e9",
                f"X-Penstock-Within: {'9' * 5000}",
                "X-Penstock-Priority: 1_0",
                "X-Penstock-Priority: +1",
                "X-Penstock-Priority: \u00d9\u00a1",
                "X-Penstock-Priority: ",
                f"X-Penstock-Priority: {'9' * 5000}",
                "X-Penstock-Priority: 1.5",
                "X-Penstock-Priority: 99999",
                "X-Penstock-Tenant: a b",
                "X-Penstock-Tenant: " + "a" * 129,
            ):
                assert problem(await s.post("/look", {}, line))["status"] == 400, line

    go(main())


def test_identity(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            assert (await s.post("/add", {"x": 1}, "X-Request-Id: a/b!"))[1]["x-request-id"] == "a/b!"
            for bad in ("a b", "a" * 129, "\u00e9"):
                assert (await s.post("/add", {"x": 1}, f"X-Request-Id: {bad}"))[1]["x-request-id"] != bad
            trace = "4bf92f3577b34da6a3ce929d0e0e4736"
            _, headers, _ = await s.post("/add", {"x": 1}, f"traceparent: 00-{trace}-00f067aa0ba902b7-01")
            assert re.fullmatch(rf"00-{trace}-(?!00f067aa0ba902b7)[0-9a-f]{{16}}-01", headers["traceparent"])
            for bad in ("00-x-y-01", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"ff-{trace}-00f067aa0ba902b7-01"):
                assert "traceparent" not in (await s.post("/add", {"x": 1}, f"traceparent: {bad}"))[1]

    go(main())


def test_operations(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            assert (await s.ask("/healthz"))[2] == b'{"status":"ok"}'
            assert json.loads((await s.ask("/readyz"))[2])["ready"] is True
            assert (await s.ask("/readyz/add"))[0] == 200
            assert (await s.ask("/readyz/none"))[0] == 404
            index = json.loads((await s.ask("/"))[2])
            assert set(index["services"]) == {service.name for service in SERVICES}
            page = await s.ask("/", "Accept: text/html")
            assert page[1]["content-type"].startswith("text/html")
            await s.post("/add", {"x": 1})
            await s.post("/fail", {"kind": "value"})
            status, headers, body = await s.ask("/metrics")
            assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
            text = body.decode()
            assert 'penstock_calls_total{service="add",outcome="ok"} 1' in text
            assert 'penstock_calls_total{service="fail",outcome="failed"} 1' in text
            names = re.findall(r"^# TYPE (\w+) ", text, re.M)
            assert len(names) == len(set(names))
            for line in text.splitlines():
                assert line.startswith("# ") or re.fullmatch(r'\w+(\{(\w+="[^"]*",?)*\})? \S+', line), line

    go(main())


def test_openapi(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            found = json.loads((await s.ask("/openapi.json"))[2])
            assert found["openapi"].startswith("3.1")
            assert set(found["paths"]["/add"]) == {"post", "get"}
            assert set(found["paths"]["/plain"]) == {"post"}
            assert "servers" not in found
            beside = [p for p in found["paths"]["/reverse"]["post"]["parameters"] if p["in"] == "query"]
            assert [(p["name"], p["required"], p["schema"]["type"]) for p in beside] == [("times", False, "integer")]
            assert not [p for p in found["paths"]["/add"]["post"]["parameters"] if p["in"] == "query"]
            references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(found)))
            assert references <= set(found["components"]["schemas"])

    go(main())


def test_cors(go: Go) -> None:
    async def main() -> None:
        preflight = ("Origin: https://a.example", "Access-Control-Request-Method: POST")
        async with site() as s:
            assert "access-control-allow-origin" not in (await s.ask("/add", *preflight, method="OPTIONS"))[1]
        async with site(cors=["https://a.example"]) as s:
            status, headers, _ = await s.ask("/add", *preflight, method="OPTIONS")
            assert status == 204
            assert headers["access-control-allow-origin"] == "https://a.example"
            assert "POST" in headers["access-control-allow-methods"]
            assert "content-type" in headers["access-control-allow-headers"]
            asks = "Access-Control-Request-Headers: authorization,content-type,x-stainless-lang"
            headers = (await s.ask("/add", *preflight, asks, method="OPTIONS"))[1]
            assert headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-lang"
            headers = (await s.ask("/add", *preflight, f"{asks}; x", method="OPTIONS"))[1]
            assert "; x" not in headers["access-control-allow-headers"]
            for answer in (
                await s.post("/add", {"x": 1}, preflight[0]),
                await s.post("/add", {}, preflight[0]),
                await s.ask("/count?n=1", preflight[0]),
                await s.ask("/count?n=-1", preflight[0]),
                await s.ask("/healthz", preflight[0]),
            ):
                assert answer[1]["access-control-allow-origin"] == "https://a.example"
                assert answer[1]["vary"] == "origin"
            for other in (preflight[0].replace("a.", "b."), "X-No: origin"):  # a cache must not give these to the other
                for headers in ((await s.post("/add", {"x": 1}, other))[1], (await s.ask("/add", other, method="OPTIONS"))[1]):
                    assert "access-control-allow-origin" not in headers
                    assert headers["vary"] == "origin"

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

    async def main() -> None:
        async with site(body) as s:
            client = await s.client()
            client.send(get("/body", method="POST"))
            while not events:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            client.close()
            end = asyncio.get_running_loop().time() + 0.5
            while len(events) < 2:
                assert asyncio.get_running_loop().time() < end
                await asyncio.sleep(0.005)

    go(main())


def test_an_answer_or_item_that_cannot_be_sent_is_a_failure_in_the_log_and_the_metrics(
    go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: list[str] = []

    async def main() -> None:
        async with site(log=True) as s:
            assert (await s.post("/fail", {"kind": "encode"}, "X-Request-Id: whole"))[0] == 500
            assert b"event: error" in (await s.post("/stream_faults", {"kind": ""}, "X-Request-Id: item"))[2]
            await s.post("/count_in_thread", {"n": 5}, "X-Request-Id: thread")
            counts.extend((await s.ask("/metrics"))[2].decode().splitlines())

    go(main())
    entries = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[:1] == "{"]
    lines = {line["id"]: line for line in entries}
    assert len(lines) == len(entries) == 3
    for name in ("whole", "item"):
        assert (lines[name]["outcome"], lines[name]["error"]) == ("failed", "BadResult")
    assert lines["thread"]["items"] == 5
    calls = [line for line in counts if line.startswith("penstock_calls_total{")]
    assert sorted(line.rpartition(" ")[0].partition("outcome=")[2] for line in calls if "fail" in line or "faults" in line) == [
        '"failed"}',
        '"failed"}',
    ]


def test_the_head_of_a_stream_alone_is_a_request_like_any_other(go: Go, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with site(log=True) as s:
            status, headers, body = await s.ask("/count?n=3", "X-Request-Id: head", method="HEAD")
            assert (status, body) == (200, b"")
            assert headers["server-timing"] == "queue;dur=0, batch;dur=0, run;dur=0.000, stream;dur=0"

    go(main())
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["id"], line["outcome"]) == ("head", "ok")


def test_the_log_has_a_line_for_each_request(go: Go, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with site(log=True) as s:
            await s.post("/add", {"x": 1}, "X-Request-Id: one", "X-Penstock-Tenant: acme")
            await s.post("/add", {}, 'X-Request-Id: t"wo')
            await s.ask("/count?n=3", "X-Request-Id: three")

    go(main())
    lines = {line["id"]: line for line in map(json.loads, capsys.readouterr().err.splitlines())}
    assert set(lines) == {"one", 't"wo', "three"}
    assert lines["one"]["outcome"] == "ok"
    assert lines["one"]["tenant"] == "acme"
    assert lines['t"wo']["error"] == "ValidationFailed"
    assert lines["three"]["items"] == 3
