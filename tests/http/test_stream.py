"""Streams over the native server: events, lines, failures before and after the first item, heartbeats."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from http_stand import get
from test_handler import problem, site, split

import penstock as ps
from penstock.http import stream

Go = Callable[[Awaitable[Any]], Any]


def events(body: bytes) -> list[dict[str, str]]:
    """As EventSource reads them (HTML standard, 9.2.6)."""
    found, fields = [], {}
    for line in body.decode().split("\n"):
        if not line:
            if "data" in fields:
                found.append(fields)
            fields = {}
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name:
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and "data" in fields else value
    return found


def test_events(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            for path, method, body in (("/count?n=3", "GET", b""), ("/count", "POST", b'{"n": 3}')):
                status, headers, answer = await s.ask(path, method=method, body=body)
                assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
                assert headers["cache-control"] == "no-cache"
                assert answer.startswith(b"retry: 3000\n\n")
                assert answer.count(b"data:") == 3
                *items, end = events(answer)
                assert [(e["id"], json.loads(e["data"])["i"]) for e in items] == [("0", 0), ("1", 1), ("2", 2)]
                assert end == {"event": "end", "data": ""}
            *items, end = events((await s.ask("/count_in_thread", method="POST", body=b'{"n": 100}'))[2])
            assert [int(e["data"]) for e in items] == list(range(100))
            assert events((await s.ask("/count?n=0"))[2]) == [{"event": "end", "data": ""}]

    go(main())


def test_lines(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            status, headers, body = await s.ask("/count?n=3", "Accept: application/x-ndjson")
            assert (status, headers["content-type"]) == (200, "application/x-ndjson")
            assert [json.loads(line)["i"] for line in body.decode().split("\n")[:-1]] == [0, 1, 2]
            assert (await s.ask("/count?n=0", "Accept: application/x-ndjson"))[2] == b""

    go(main())


def test_one_answer_as_a_stream(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            _, _, body = await s.post("/add", {"x": 1}, "Accept: text/event-stream")
            assert events(body) == [{"id": "0", "data": "3"}, {"event": "end", "data": ""}]
            assert (await s.post("/add", {"x": 1}, "Accept: application/x-ndjson"))[2] in (b"3\n", 3)

    go(main())


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
def test_a_failure_before_the_first_item_is_an_ordinary_problem(go: Go, accept: str) -> None:
    async def main() -> None:
        async with site() as s:
            answer = await s.ask("/count?n=-1", f"Accept: {accept}")
            assert problem(answer)["status"] == 500
            assert b"a secret" not in answer[2]
            assert answer[1]["content-length"] == str(len(answer[2]))

    go(main())


def test_a_failure_after_the_first_item_is_an_event(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            status, _, body = await s.ask("/count?n=101")
            *items, error = events(body)
            assert (status, len(items), error["event"]) == (200, 3, "error")
            assert json.loads(error["data"])["status"] == 500
            assert b"a secret" not in body
            *_, last = (await s.ask("/count?n=101", "Accept: application/x-ndjson"))[2].decode().splitlines()
            assert json.loads(last)["error"]["status"] == 500
            for kind in ("encode", "reset", "cancel", "exit"):
                *_, error = events((await s.ask("/stream_faults", method="POST", body=json.dumps({"kind": kind}).encode()))[2])
                assert error["event"] == "error", kind

    go(main())


def test_head(go: Go) -> None:
    async def main() -> None:
        async with site() as s:
            status, headers, body = await asyncio.wait_for(s.ask("/count?n=1000&gap=10", method="HEAD"), 2)
            assert (status, body) == (200, b"")
            assert headers["content-type"].startswith("text/event-stream")

    go(main())


@pytest.mark.parametrize(
    ("accept", "sign", "whole"),
    [
        (
            "text/event-stream",
            b":\n\n",
            rb"retry: 3000\n\n(:\n\n)+id: 0\ndata: 1\n\n(:\n\n)+id: 1\ndata: 2\n\nevent: end\ndata\n\n",
        ),
        ("application/x-ndjson", b"\r\n\n\r\n", rb"\n+1\n\n+2\n"),
    ],
)
def test_heartbeats(go: Go, monkeypatch: pytest.MonkeyPatch, accept: str, sign: bytes, whole: bytes) -> None:
    monkeypatch.setattr(stream.Heartbeats.__init__, "__defaults__", (0.02,))

    async def main() -> None:
        gates = [asyncio.Event(), asyncio.Event()]

        @ps.service(safe=True)
        async def slow() -> AsyncIterator[int]:
            for n, gate in enumerate(gates, 1):
                await gate.wait()
                yield n

        async with site(slow) as s:
            client = await s.client()
            client.send(get("/slow", "Connection: close", f"Accept: {accept}"))
            answer = b""
            for gate in gates:
                answer += await client.until(sign)
                answer += await client.until(sign)
                gate.set()
                if gate is gates[0]:
                    answer += await client.until(b"1\n")
            answer += await client.all()
            assert re.fullmatch(whole, split(answer)[2])

    go(main())


def test_a_reader_that_leaves_ends_the_body(go: Go) -> None:
    ended: list[bool] = []

    @ps.service(safe=True)
    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            ended.append(True)

    async def main() -> None:
        async with site(endless) as s:
            for _ in range(5):
                client = await s.client()
                client.send(get("/endless"))
                await client.until(b"data: 1")
                client.close()
            end = asyncio.get_running_loop().time() + 20
            while len(ended) < 5:
                assert asyncio.get_running_loop().time() < end
                await asyncio.sleep(0.005)

    go(main())


def test_a_slow_reader_holds_the_body_back(go: Go) -> None:
    made: list[int] = []

    @ps.service(safe=True)
    async def eager() -> AsyncIterator[str]:
        for i in range(10_000):
            made.append(i)
            yield "x" * 10_000

    async def main() -> None:
        async with site(eager) as s:
            client = await s.client()
            client.reader._limit = 1000
            client.send(get("/eager"))
            before = -1
            while before < len(made) or not made:
                before = len(made)
                await asyncio.sleep(0.05)
            assert len(made) < 5000
            client.writer.transport.abort()

    go(main())
