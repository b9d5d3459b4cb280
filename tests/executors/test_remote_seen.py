"""What is seen of remotes: metrics, status, `penstock top`, the start-up report; and the trace that goes on through them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.request import Request, urlopen

import msgspec
import pytest
from served import served

import penstock as ps
from penstock.cli.top.frame import frame
from penstock.http.serve import serving
from penstock.http.status import Status

from .remote_stand import Odd, failing, odd, until, well

HERE = Path(__file__).parent


def ask(url: str, body: bytes | None = None, **headers: str) -> bytes:
    request = Request(url, body, {"content-type": "application/json", **headers})  # noqa: S310 - our own server
    with urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


def test_metrics_status_and_top_tell_the_state_of_each_remote() -> None:
    def number() -> int: ...

    async def main() -> None:
        async with odd(failing) as bad, odd(well) as good:
            service = ps.service(number, on=ps.Remote([bad.url, good.url], connections=4, health=""), safe=True)
            async with serving(ps.App(service, log=False)) as server:
                url = f"http://127.0.0.1:{server.port}"
                before = msgspec.json.decode(await asyncio.to_thread(ask, f"{url}/status"), type=Status)
                for _ in range(40):
                    assert await asyncio.to_thread(ask, f"{url}/number", b"{}") == b"1"
                now = msgspec.json.decode(await asyncio.to_thread(ask, f"{url}/status"), type=Status)
                metrics = (await asyncio.to_thread(ask, f"{url}/metrics")).decode()
            (seen,) = now.services
            assert (seen.place, seen.retries) == ("remote", 5)
            first, second = seen.replicas
            assert (first.name, first.state, first.up, first.slots) == (bad.url, "ejected", False, 4)
            assert first.calls == {"failed": 5} and first.ejections == 1 and "5 calls in a row" in first.why
            assert (second.name, second.state, second.up) == (good.url, "serving", True)
            assert second.calls == {"ok": 40} and second.median > 0 and second.busy_seconds > 0
            text = "\n".join(frame(before, now, url, 200, 100))
            assert f"ejected, 0 of 4 on {bad.url}" in text and "5 calls in a row failed" in text and "1/2" in text
            assert "retried 12% of calls" in text
            for line in (
                f'penstock_remote_up{{service="number",remote="{bad.url}"}} 0',
                f'penstock_remote_up{{service="number",remote="{good.url}"}} 1',
                f'penstock_remote_ejections_total{{service="number",remote="{bad.url}"}} 1',
                f'penstock_remote_calls_total{{service="number",remote="{bad.url}",outcome="failed"}} 5',
                'penstock_retries_total{service="number"} 5',
            ):
                assert f"\n{line}\n" in metrics, metrics

    asyncio.run(main())


def test_the_report_at_the_start_says_which_remotes_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with odd(well) as good:
            async with odd(well) as gone:
                gone_url = gone.url
            monkeypatch.setenv("PENSTOCK_TEST_REMOTES", f"{good.url} {gone_url}")
            await asyncio.to_thread(start, good, gone_url)

    def start(good: Odd, gone: str) -> None:
        with served("remote_front:app", cwd=HERE) as (child, url):
            child.until(r"/number  remote x2 with 4 connections each")
            child.until(rf"at {good.url}  serving")
            child.until(rf"at {gone}  unhealthy: it cannot be reached")
            assert ask(f"{url}/number", b"{}") == b"1"
            assert json.loads(ask(f"{url}/readyz"))["ready"] is True

    asyncio.run(main())


def test_a_trace_that_comes_by_http_goes_on_through_bodies_and_remotes() -> None:
    def number() -> int: ...

    async def main() -> None:
        async with odd(well) as server:
            remote = ps.service(number, on=ps.Remote(server.url, health=""))

            @ps.service
            async def outer() -> int:
                return await inner()

            @ps.service
            async def inner() -> int:
                return await remote()

            async with serving(ps.App(outer, inner, remote, log=False)) as front:
                url = f"http://127.0.0.1:{front.port}/outer"
                trace = f"00-{'a' * 32}-{'b' * 16}-01"
                assert await asyncio.to_thread(lambda: ask(url, b"{}", traceparent=trace)) == b"1"
                assert await asyncio.to_thread(ask, url, b"{}") == b"1"
            await until(lambda: len(server.requests) == 2)
            first, second = server.requests
            assert f"traceparent: 00-{'a' * 32}-".encode() in first and b"b" * 16 not in first
            assert b"traceparent" not in second

    asyncio.run(main())
