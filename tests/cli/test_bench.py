"""The load generator against real servers: what it counts must be what happened."""

from __future__ import annotations

import asyncio
import json
import signal
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from bench_stand import command, server

from penstock.cli.bench.compare import compared, replayed
from penstock.cli.bench.load import Load, target
from penstock.cli.bench.tally import Tally, quantile

JSON = {"content-type": "application/json"}


def to(url: str, *bodies: bytes, accept: str = "*/*") -> Any:
    return target(url, "POST", list(bodies), {**JSON, "accept": accept})


def test_closed_loop_counts_what_it_sent() -> None:
    async def main() -> None:
        async with server() as url:
            load = Load(to(f"{url}/hello", b'{"name":"a"}', b'{"name":"b"}'), clients=4, count=101)
            tally = await load.run(30)
            assert (tally.sent, tally.answers, tally.statuses) == (101, 101, {200: 101})
            assert not tally.errors and not load.busy

    asyncio.run(main())


def test_open_loop_is_poisson_at_its_rate_and_waits_for_nobody() -> None:
    async def main() -> None:
        async with server() as url:
            load = Load(to(f"{url}/narrow", b"{}"), rate=400.0, random=Random(1))
            tally = await load.run(1.0)
            assert 300 < tally.sent < 500  # the service can do 100
            assert tally.statuses[200] + tally.statuses[429] + tally.statuses[503] == tally.sent
            assert tally.statuses[429] > 100
            assert sum(tally.errors.values()) + tally.answers == tally.sent
            gaps = [b - a for a, b in pairwise(load.arrivals)]
            mean = sum(gaps) / len(gaps)
            assert sum((g - mean) ** 2 for g in gaps) / len(gaps) > 0.5 * mean**2  # not evenly spaced

    asyncio.run(main())


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
def test_streams_are_told_apart_by_event(accept: str) -> None:
    async def main() -> None:
        async with server() as url:
            tally = await Load(to(f"{url}/count", b'{"n":10}', accept=accept), clients=3, count=6).run(30)
            assert (tally.answers, tally.items, len(tally.firsts), len(tally.gaps)) == (6, 60, 6, 54)
            assert min(tally.firsts) > 0 and max(tally.firsts) <= max(tally.latencies)
            broken = await Load(to(f"{url}/count", b'{"n":13}', accept=accept), clients=1, count=2).run(30)
            assert broken.errors == {"error in the stream": 2} and broken.answers == 0

    asyncio.run(main())


def test_faults_are_counted_by_kind() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/half" in head:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
        elif b"/rubbish" in head:
            writer.write(b"what is this?\r\n\r\n")
        elif b"/crlf" in head:
            events = b"data: 1\r\n\r\ndata: 2\r\n\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + events)
        elif b"/hang" in head:
            await reader.read()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]

            async def errors(path: str, **options: Any) -> dict[str, int]:
                load = Load(to(f"http://127.0.0.1:{port}{path}", b"{}"), clients=1, count=3, **options)
                return dict((await load.run(30)).errors)

            assert await errors("/half") == {"broken off": 3}
            assert await errors("/rubbish") == {"not HTTP": 3}
            assert await errors("/closed") == {"closed": 3}
            assert await errors("/hang", timeout=0.05) == {"timed out": 3}
            crlf = await Load(to(f"http://127.0.0.1:{port}/crlf", b"{}"), clients=1, count=2).run(30)
            assert (crlf.items, crlf.answers) == (4, 2)
        refused = await Load(to(f"http://127.0.0.1:{port}/", b"{}"), rate=50.0).run(0.2)
        assert refused.errors == {"no connection: refused": refused.sent} and refused.sent

    asyncio.run(main())


def test_comparison_with_one_at_a_time() -> None:
    assert replayed([0.0, 0.0, 0.0], 1.0) == pytest.approx(2.0)  # 1, 2 and 3 s
    assert replayed([0.0, 5.0, 10.0], 1.0) == pytest.approx(1.0)
    alone, loaded = Tally(), Tally()
    for tally, latencies in ((alone, [0.1] * 10), (loaded, [0.2] * 100)):
        tally.latencies.extend(latencies)
        tally.ends.extend([0.5] * len(latencies))
        tally.stopped = 1.0
    found = compared(alone, loaded, 16, [])
    assert found["speed_up"] == pytest.approx(10)
    assert found["latency_reduction"] == pytest.approx(1 - 0.2 / 1.6)
    assert compared(Tally(), loaded, 16, []) == {}


def test_quantiles_are_by_nearest_rank() -> None:
    assert [quantile(range(1, 101), q) for q in (0.0, 0.5, 0.99, 1.0)] == [1, 51, 100, 100]
    assert quantile([], 0.5) == 0.0


def test_the_command_reports_against_one_at_a_time() -> None:
    async def main() -> None:
        async with server() as url:
            child = await command(
                "bench",
                f"{url}/double",
                "-d",
                '{"x": 1}',
                "-c",
                "8",
                "-t",
                "0.5",
                "--baseline",
                "0.2",
                "--within",
                "5",
                "--json",
            )
            out, said = await child.communicate()
            report = json.loads(out)
            assert child.returncode == 0, said
            assert set(report["load"]["statuses"]) == {"200"} and report["load"]["goodput"] > 0
            assert report["compared"]["speed_up"] > 0
            assert report["server"]["batch_size"] > 1 and 0 < report["server"]["replicas_busy"] <= 1.05

    asyncio.run(main())


def test_ctrl_c_keeps_the_results() -> None:
    async def main() -> None:
        async with server() as url:
            child = await command("bench", f"{url}/hello", "-d", '{"name": "a"}', "-t", "600", "--baseline", "0")
            while (await metric(url, 'penstock_calls_total{service="hello",outcome="ok"}')) < 100:
                await asyncio.sleep(0.02)
            child.send_signal(signal.SIGINT)
            out, _ = await asyncio.wait_for(child.communicate(), 30)
            assert child.returncode == 130
            assert b"(interrupted)" in out and b"200: " in out

    asyncio.run(main())


def test_the_command_says_what_is_wrong() -> None:
    async def main() -> None:
        for arguments, words in (
            (["ftp://x/"], b"is not a URL"),
            (["http://x:99999/"], b"is not a URL"),
            (["http://[::1/a"], b"is not a URL"),
            (["http://127.0.0.1:1/x", "-H", "nonsense"], b"name:value"),
            (["http://127.0.0.1:1/x", "-d", "@/nowhere.json"], b"No such file"),
        ):
            child = await command("bench", *arguments)
            _, said = await child.communicate()
            assert child.returncode == 1 and words in said and b"Traceback" not in said

    asyncio.run(main())


async def metric(url: str, name: str) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)), 0.0)
