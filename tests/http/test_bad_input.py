"""What goes wrong in requests and in bodies, over real sockets: each gets a clear problem with an id and a line in
the log, and another client, which asks all the while on connections of its own, is not harmed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import bad_bodies
import pytest
from http_stand import SMALL, Client, get
from test_handler import Site, problem, split

import penstock as ps
from penstock.http.serve import serving

LONGEST = 20.0
LIMITS = replace(SMALL, idle_timeout=60.0)


class Bystander:
    """A client that does nothing wrong: calls on one connection, and a stream on another."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.answers = 0
        self.items = 0
        self.ending = False  # cancelling would do, but wait_for of Python 3.11 loses one that comes with the answer
        self.tasks = [asyncio.ensure_future(self.call()), asyncio.ensure_future(self.read())]

    async def call(self) -> None:
        client = await self.site.client()
        while not self.ending:
            client.send(get(f"/square?x={self.answers}"))
            status, _, body = await client.answer()
            assert (status, int(body)) == (200, self.answers**2)
            self.answers += 1

    async def read(self) -> None:
        client = await self.site.client()
        client.send(get("/ticks"))
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        while not self.ending:
            await client.until(b"id: %d\ndata: %d\n\n" % (self.items, self.items))
            self.items += 1
        client.close()

    async def end(self) -> None:
        self.ending = True
        await asyncio.gather(*self.tasks)

    async def go_on(self) -> None:
        """Wait for a few more answers and items."""
        answers, items = self.answers + 3, self.items + 3
        async with asyncio.timeout(LONGEST):
            while self.answers < answers or self.items < items:
                for task in self.tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.002)


@ps.service(safe=True)
async def ticks() -> AsyncIterator[int]:
    n = 0
    while True:
        yield n
        n += 1
        await asyncio.sleep(0.002)


@asynccontextmanager
async def beside(*services: Any, **options: Any) -> AsyncIterator[Site]:
    """A site, and somebody else who uses it."""
    app = ps.App(bad_bodies.square, ticks, *services, **options)
    async with serving(app, grace=0.0, limits=LIMITS) as server:
        site = Site(server.port)
        bystander = Bystander(site)
        try:
            await bystander.go_on()
            yield site
            await bystander.go_on()
        finally:
            await bystander.end()


async def ask(site: Site, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """The only answer to these bytes; the server ends the connection."""
    client = await site.client()
    client.send(data)
    answer = split(await client.all(LONGEST))
    client.close()
    return answer


def post(path: str, body: bytes, *lines: str) -> bytes:
    kind = () if any(line.startswith("Content-Type") for line in lines) else ("Content-Type: application/json",)
    return get(path, "Connection: close", *kind, *lines, method="POST", body=body)


def typed(body: bytes, *lines: str) -> bytes:
    return post("/typed", body, *lines)


# name: (bytes, status, a part of the detail)
REQUESTS: dict[str, tuple[bytes, int, str]] = {
    "malformed JSON": (typed(b'{"x": '), 400, "truncated"),
    "no JSON at all": (typed(b"hello"), 400, "malformed"),
    "nothing": (typed(b" "), 400, "truncated"),
    "a wrong type": (typed(b'{"x": "1"}'), 422, "Expected `int`, got `str` - at `$.x`"),
    "a wrong type inside": (typed(b'{"x": 1, "names": ["a", 2]}'), 422, "at `$.names[1]`"),
    "a missing field": (typed(b"{}"), 422, "missing required field `x`"),
    "an unknown field": (typed(b'{"x": 1, "z": 1}'), 422, "unknown field `z`"),
    "no object": (typed(b"[1]"), 422, "Expected `object`, got `array`"),
    "null": (typed(b"null"), 422, "Expected `object`, got `null`"),
    "invalid UTF-8": (typed(b'{"x": 1, "names": ["\xff\xfe"]}'), 400, "UTF-8"),
    "NaN": (typed(b'{"x": NaN}'), 400, "malformed"),
    "Infinity": (typed(b'{"x": -Infinity}'), 400, "malformed"),
    "a deep list": (typed(b"[" * 50_000), 422, "Expected `object`, got `array`"),
    "a deep object": (typed(b'{"x":' * 15_000), 422, "Expected `int`, got `object`"),
    "a deep value of any type": (post("/anything", b'{"value":' + b"[" * 50_000), 400, "deep"),
    "a huge number": (typed(b'{"x": ' + b"9" * 5000 + b"}"), 422, "x"),
    "malformed msgpack": (typed(b"\xc1", "Content-Type: application/msgpack"), 400, "MessagePack"),
    "truncated msgpack": (typed(b"\x81\xa1x", "Content-Type: application/msgpack"), 400, "truncated"),
    "another media type": (typed(b"x,1", "Content-Type: text/csv"), 415, "text/csv"),
    "what curl -d sends": (
        typed(b"{}", "Content-Type: application/x-www-form-urlencoded"),
        415,
        "-H 'content-type: application/json'",
    ),
    "no media type that we make": (typed(b'{"x": 1}', "Accept: image/png"), 406, "offered: application/json"),
    "a deadline that is none": (typed(b'{"x": 1}', "X-Penstock-Within: soon"), 400, "X-Penstock-Within"),
    "a priority that is none": (typed(b'{"x": 1}', "X-Penstock-Priority: high"), 400, "X-Penstock-Priority"),
    "base64 that is none": (post("/sent", b'{"data": "?"}'), 422, "base64"),
    "no such service": (get("/none", "Connection: close"), 404, "nothing is at /none"),
    "nearly a service": (get("/typo", "Connection: close"), 404, "did you mean /typed?"),
    "no such replica": (get("/readyz/none", "Connection: close"), 404, "no service is named"),
    "GET of what is not safe": (get("/typed?x=1", "Connection: close"), 405, "typed answers POST"),
    "POST of an operation": (post("/healthz", b"{}"), 405, "answers GET"),
    "a query that is not UTF-8": (get("/square?x=%FF", "Connection: close"), 400, "query"),
    "a query with too many fields": (get("/square?" + "&" * 600 + "x=" * 1, "Connection: close"), 422, "x"),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "not valid HTTP/1.1"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "HTTP"),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505, "HTTP/0.9 is not spoken here"),
    "no host": (b"GET /square?x=1 HTTP/1.1\r\n\r\n", 400, "Host"),
    "two hosts": (get("/square?x=1", "Host: b"), 400, "Host"),
    "both lengths": (get("/typed", "Content-Length: 3", "Transfer-Encoding: chunked", method="POST"), 400, "HTTP/1.1"),
    "a length that is none": (get("/typed", "Content-Length: -3", method="POST"), 400, "HTTP/1.1"),
    "a bad chunk": (get("/typed", "Transfer-Encoding: chunked", method="POST") + b"zz\r\n", 400, "HTTP/1.1"),
    "another coding": (get("/typed", "Transfer-Encoding: gzip", method="POST"), 501, "chunked"),
    "a NUL in a header": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400, "HTTP/1.1"),
    "a path that is not UTF-8": (get("/%FF%FE"), 400, "UTF-8"),
    "a proxy's request": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 501, "no proxy"),
    "a web socket": (get("/typed", "Connection: upgrade", "Upgrade: websocket"), 501, "WebSockets"),
    "an expectation": (get("/typed", "Expect: miracles", "Content-Length: 3", method="POST"), 417, "100-continue"),
    "a huge header": (get("/square?x=1", "X-Large: " + "a" * 40_000), 431, "header section is longer than"),
    "many headers": (get("/square?x=1", *(f"X-{n}: a" for n in range(30))), 431, "more than 20 header fields"),
    "a long target": (get("/" + "a" * 2000), 414, "longer than 1000 bytes"),
    "100 MB announced": (
        get("/sent", "Content-Length: 104857600", method="POST"),
        413,
        "larger than the limit of 100000 bytes",
    ),
    "a slow head": (b"GET /square?x=1 HTTP/1.1\r\nHo", 408, "header section took longer"),
    "a slow body": (get("/typed", "Content-Length: 100", method="POST") + b"{", 408, "bytes/s"),
}


@ps.service
async def anything(value: Any) -> None:
    """Takes any value."""


def test_bad_requests(capsys: pytest.CaptureFixture[str]) -> None:
    """All at once, and beside another client."""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = {}

    async def one(site: Site, name: str) -> None:
        answers[name] = await ask(site, REQUESTS[name][0])

    async def main() -> None:
        async with beside(bad_bodies.typed, bad_bodies.sent, anything, max_body=100_000) as site:
            await asyncio.gather(*(one(site, name) for name in REQUESTS))

    asyncio.run(main())
    lines = {line["id"]: line for line in map(json.loads, capsys.readouterr().err.splitlines())}
    wrong = {}
    for name, (_, status, part) in REQUESTS.items():
        found = problem(answers[name])
        identity = answers[name][1]["x-request-id"]
        if found["status"] != status or part not in found["detail"] or found["instance"] != identity:
            wrong[name] = found
        assert len(found["detail"]) < 1000 and found["detail"].isprintable()
        assert lines[identity]["outcome"] == "invalid", name
    assert wrong == {}


def test_the_callers_own_id_is_kept_where_it_was_read() -> None:
    async def main() -> None:
        async with beside(bad_bodies.typed, log=False) as site:
            mine = "X-Request-Id: mine"
            for data in (
                typed(b"{}", mine),
                get("/none", mine, "Connection: close"),
                get("/typed", mine, "Connection: close"),
                get("/typed", mine, "Content-Length: 104857600", method="POST"),
            ):
                answer = await ask(site, data)
                assert problem(answer)["instance"] == answer[1]["x-request-id"] == "mine"

    asyncio.run(main())


async def pour(client: Client, chunked: bool) -> int:
    """Send up to 100 MB until the server has answered; how much it took."""
    piece = b"a" * 65536
    framed = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
    poured = 0
    while poured < 100 << 20 and not client.reader._buffer:  # type: ignore[attr-defined]
        client.send(framed)
        poured += len(piece)
        await client.writer.drain()
    return poured


@pytest.mark.parametrize("head", ["Content-Length: 104857600", "Transfer-Encoding: chunked"])
def test_100_mb_are_refused_before_they_are_read(head: str) -> None:
    async def main() -> None:
        async with beside(bad_bodies.sent, log=False, max_body=100_000) as site:
            client = await site.client()
            client.send(get("/sent", head, "Content-Type: application/octet-stream", method="POST"))
            assert await pour(client, "chunked" in head) < 20 << 20
            assert (await client.answer())[0] == 413

    asyncio.run(main())


def test_a_slow_loris_gets_nothing_and_many_harm_nobody() -> None:
    async def loris(site: Site) -> bytes:
        client = await site.client()
        reading = asyncio.ensure_future(client.all(LONGEST))
        client.send(b"GET /square?x=1 HTTP/1.1\r\nHost: a\r\n")
        while not reading.done():
            client.send(b"X: a\r\n")
            await asyncio.sleep(0.02)
        return reading.result()

    async def main() -> None:
        async with beside(log=False) as site:
            for answer in await asyncio.gather(*(loris(site) for _ in range(50))):
                assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 431"))

    asyncio.run(main())


def test_half_open_connections_harm_nobody() -> None:
    async def main() -> None:
        ended = asyncio.Event()

        @ps.service
        async def held() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with beside(held, log=False) as site:
            silent = [await site.client() for _ in range(100)]
            half = await site.client()
            half.send(get("/held", method="POST"))
            half.writer.write_eof()  # a client that closes its sending side has left
            assert await half.all(LONGEST) == b""
            async with asyncio.timeout(LONGEST):
                await ended.wait()
            for client in silent:  # those that never say anything are closed after the time for a head
                assert await client.all(LONGEST) == b""

    asyncio.run(main())


# service: (parameters, headers, status, class, a part of the detail)
BODIES: dict[str, tuple[Any, tuple[str, ...], int, str, str]] = {
    "raises": ({}, (), 500, "UserError", "the server's log has it"),
    "raises_in_thread": ({}, (), 500, "UserError", "the server's log has it"),
    "hangs": ({}, ("X-Penstock-Within: 0.05",), 504, "DeadlineExceeded", "deadline"),
    "bounded": ({}, (), 504, "DeadlineExceeded", "deadline"),
    "stalls": ({}, (), 504, "ProgressTimeout", "0.05 s"),
    "too_few": ({"x": 1}, (), 500, "BadResult", "returned 0: return a list of"),
    "no_list": ({"x": 1}, (), 500, "BadResult", "NoneType"),
    "opaque": ({}, (), 500, "BadResult", "`$.deep[1]` is a `object`"),
    "circular": ({}, (), 500, "BadResult", "circular or nested too deep"),
    "exits": ({}, (), 500, "ServiceError", "called sys.exit(3)"),
    "exits_in_thread": ({}, (), 500, "ServiceError", "called sys.exit(3)"),
    "costs_what": ({"x": 1}, (), 500, "UserError", "the server's log has it"),
    "weighs_what": ({}, (), 500, "UserError", "the server's log has it"),
    "refuses_for_ever": ({}, (), 429, "QueueFull", "no time"),
    "raises_odd": ({}, (), 500, "UserError", "the server's log has it"),
    "exits_in_a_join": ({}, (), 500, "ServiceError", "called sys.exit(3)"),
    "exits_in_a_map": ({}, (), 500, "ServiceError", "called sys.exit(3)"),
    "exits_when_started": ({}, (), 500, "ServiceError", "called sys.exit(3)"),
    "cancels": ({}, (), 500, "PenstockError", "cancelled its own call"),
    "killed": ({}, (), 503, "WorkerLost", "killed"),
    "exits_in_process": ({}, (), 500, "ServiceError", "called sys.exit(3)"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_misbehave(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given, headers, status, kind, part = BODIES[name]

    async def main() -> tuple[int, dict[str, str], bytes]:
        async with beside(getattr(bad_bodies, name)) as site:
            data = post(f"/{name}", json.dumps(given).encode(), *headers)
            answer, again = await asyncio.gather(ask(site, data), ask(site, data))
            assert problem(again)["status"] == status
            return answer

    answer = asyncio.run(main())
    found = problem(answer)
    assert found["status"] == status, found
    assert kind in found["type"], found
    assert part in found["detail"], found
    assert "a secret" not in found["detail"]
    assert found["instance"] == answer[1]["x-request-id"]
    assert (status != 503) or found.get("retry_after", 1) > 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[:1] == "{"]
    assert found["instance"] in {line["id"] for line in lines}


@pytest.mark.parametrize("name", ["stalls_in_stream", "opaque_in_stream", "exits_in_stream", "raises_odd_in_stream"])
def test_streams_that_misbehave(name: str) -> None:
    async def main() -> None:
        async with beside(getattr(bad_bodies, name), log=False) as site:
            status, _, body = await ask(site, post(f"/{name}", b""))
            assert status == 200
            before, _, error = body.partition(b"event: error\ndata: ")
            assert b"id: 0\ndata: 1\n\n" in before
            assert json.loads(error)["status"] in (500, 504)
            *items, last = (await ask(site, post(f"/{name}", b"", "Accept: application/x-ndjson")))[2].splitlines()
            assert items == [b"1"]
            assert json.loads(last)["error"]["status"] in (500, 504)

    asyncio.run(main())


def test_a_replica_that_was_killed_comes_back() -> None:
    async def main() -> None:
        async with beside(bad_bodies.killed, bad_bodies.alive, log=False) as site:
            first = await ask(site, post("/alive", b""))
            assert problem(await ask(site, post("/killed", b"")))["status"] == 503
            assert problem(await ask(site, post("/killed", b"")))["status"] == 503  # by the next child
            assert (await ask(site, post("/alive", b"")))[2] == first[2]  # another service's child is untouched

    asyncio.run(main())
