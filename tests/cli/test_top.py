"""The live view: what it shows is what the server did, on a terminal and without one."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys

import pytest
from bench_stand import command, double, hello, narrow, server
from executors.bodies import occupies
from executors.slot_bodies import two as words
from served import environment

import penstock as ps
from penstock.cli.bench.load import Load, target
from penstock.cli.top import fetch
from penstock.cli.top.frame import frame
from penstock.http.status import Recent

GPU = ps.Pool("gpu", 2)


@ps.service(needs={GPU: 1.5}, limit=ps.Fixed(3))
async def leased(gate: int) -> int:
    await asyncio.sleep(gate)
    return gate


async def post(url: str, body: bytes, count: int = 1, clients: int = 1) -> None:
    await Load(target(url, "POST", [body], {"content-type": "application/json"}), clients=clients, count=count).run(30)


def test_status_counts_what_happened() -> None:
    async def main() -> None:
        async with server(hello, double, narrow) as url:
            before = await asyncio.to_thread(fetch, url)
            await post(f"{url}/double", b'{"x": 1}', 40, 8)
            await post(f"{url}/hello", b'{"name": 7}', 3)
            now = await asyncio.to_thread(fetch, url)
            doubled = next(s for s in now.services if s.name == "double")
            assert doubled.calls == {"ok": 40} and doubled.started_calls == pytest.approx(40)
            assert sum(doubled.released.values()) == pytest.approx(doubled.starts)
            assert doubled.p50 is not None and doubled.p99 is not None and 0 < doubled.p50 <= doubled.p99 < 30
            assert [replica.up for replica in doubled.replicas] == [True] and doubled.replicas[0].busy_seconds > 0
            assert now.threads >= 2 and now.memory_bytes > 1 << 20 and now.at > before.at
            lines = frame(before, now, url, 200, 100)
            row = next(line for line in lines if line.startswith("double")).split()
            assert row[1:3] == ["thread", "1/1"]
            assert float(row[7].replace(",", "")) == pytest.approx(40 / (now.at - before.at), abs=0.1)
            invalid = next(line for line in lines if line.startswith("hello")).split()
            assert float(invalid[8]) > 0

    asyncio.run(main())


def test_leases_queues_and_running_work_are_shown() -> None:
    async def main() -> None:
        async with server(leased) as url:
            calls = [asyncio.ensure_future(post(f"{url}/leased", b'{"gate": 30}')) for _ in range(3)]
            while True:
                now = await asyncio.to_thread(fetch, url)
                if now.services[0].queued == 2:
                    break
            assert now.services[0].in_flight == 1
            (pool,) = now.pools
            assert (pool.name, pool.used, pool.capacity, pool.waiting) == ("gpu", 1.5, 2.0, ["leased"])
            text = "\n".join(frame(now, now, url, 200, 100))
            assert "1.5 of 2, awaited by leased" in text
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(main())


def test_a_model_with_slots_is_one_replica() -> None:
    async def main() -> None:
        async with server(words) as url:
            calls = [asyncio.ensure_future(post(f"{url}/two_models", b'{"word": "a", "times": 1000000}')) for _ in range(3)]
            async with asyncio.timeout(20):
                while True:
                    now = await asyncio.to_thread(fetch, url)
                    if now.services[0].in_flight == 3:
                        break
            assert sorted((r.up, r.slots, r.running) for r in now.services[0].replicas) == [(True, 2, 1), (True, 2, 2)]
            lines = frame(now, now, url, 200, 100)
            assert next(line for line in lines if line.startswith("two_models")).split()[1:3] == ["thread", "2/2"]
            assert sorted(line.split(", ")[1] for line in lines if " runs, " in line) == ["1 of 2", "2 of 2"]
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(main())


def test_the_memory_of_children_and_their_devices() -> None:
    async def main() -> None:
        async with server(occupies) as url:
            assert await occupies(1 << 30) == 1 << 30
            async with asyncio.timeout(20):
                while True:
                    now = await asyncio.to_thread(fetch, url)
                    (replica,) = now.services[0].replicas
                    if replica.device_bytes[0]:
                        break
            assert replica.device_bytes == (1 << 30, 2 << 30, 3 << 30) and replica.memory_bytes > 1 << 20
            lines = frame(now, now, url, 200, 100)
            taken = "1 GiB used, 2 GiB reserved, peak 3 GiB"
            assert [line.split()[0] for line in lines if line.endswith(taken)] == ["xpu:0", "occupies"]

    asyncio.run(main())


def test_frames_fit_the_terminal() -> None:
    async def main() -> None:
        async with server() as url:
            now = await asyncio.to_thread(fetch, url)
            lines = frame(now, now, url, 60, 5)
            assert len(lines) == 5 and max(map(len, lines)) <= 60
            broken = now.services[0]
            broken.broken = "it fell"
            assert "  it fell" in frame(now, now, url, 80, 50)
            assert any(line.startswith("\x1b[31m") for line in frame(now, now, url, 80, 50, colour=True))

    asyncio.run(main())


def test_quantiles_are_of_the_latest_calls_only() -> None:
    recent = Recent()
    for n in range(100):
        recent.add([float(n)] * 64, float(n) / 100)
    assert recent.count <= 4096 + 64
    assert recent.quantiles(1.0, 0.0, 0.5, 1.0) == [36.0, 68.0, 99.0]
    assert recent.quantiles(10.985, 0.0) == [99.0]
    assert recent.quantiles(100.0, 0.5) == [] and recent.count == 0


def test_without_a_terminal_it_prints_one_frame() -> None:
    async def main() -> None:
        async with server() as url:
            child = await command("top", url, "--interval", "0.05")
            out, said = await asyncio.wait_for(child.communicate(), 30)
            assert child.returncode == 0, said
            assert b"SERVICE" in out and b"\x1b" not in out
        child = await command("top", url)
        _, said = await asyncio.wait_for(child.communicate(), 30)
        assert child.returncode == 1 and b"no answer from" in said and b"Traceback" not in said

    asyncio.run(main())


@pytest.mark.parametrize("end", ["q", "interrupt", "terminate"])
def test_on_a_terminal_it_goes_on_until_it_is_ended(end: str) -> None:
    async def main() -> None:
        async with server() as url:
            ours, theirs = pty.openpty()
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "penstock", "top", url, "--interval", "0.05",
                stdin=theirs, stdout=theirs, stderr=theirs, env=environment(), start_new_session=True,
            )  # fmt: skip
            os.close(theirs)
            screen = b""
            while screen.count(b"SERVICE") < 3:
                screen += await asyncio.to_thread(os.read, ours, 1 << 16)
            if end == "q":
                os.write(ours, b"q")
            else:
                child.send_signal(signal.SIGINT if end == "interrupt" else signal.SIGTERM)
            try:
                while data := await asyncio.to_thread(os.read, ours, 1 << 16):
                    screen += data
            except OSError:  # Linux says so that the other side has closed
                pass
            os.close(ours)
            assert await asyncio.wait_for(child.wait(), 30) == (143 if end == "terminate" else 0)
            assert screen.rstrip().endswith(b"\x1b[?25h\x1b[?1049l") and not re.search(rb"Traceback", screen)

    asyncio.run(main())
