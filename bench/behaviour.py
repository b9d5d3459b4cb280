#!/usr/bin/env python3
"""Rows G, H and K against `penstock serve` in a process of its own.

    python bench/behaviour.py [G] [H] [K] [--requests N]

G: bodies started after six callers of a one-second body are gone at 0.5 s (one replica). H: resident memory and live
objects, after a collection, between request N/10 and N, and before any stream and after 10,000 that their clients abort;
then after 10,000 more. K: /healthz while bodies keep both cores busy.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time

import psutil

import penstock as ps

HERE = os.path.dirname(os.path.abspath(__file__))
started = 0


@ps.service(on=ps.Thread(1))
def slow(x: int) -> int:
    global started
    started += 1
    time.sleep(1.0)
    return x


@ps.service(limit=ps.Fixed(1))
async def aslow(x: int) -> int:
    global started
    started += 1
    try:
        await asyncio.sleep(1.0)
    except asyncio.CancelledError:
        print(f"CANCELLED {time.time()}", flush=True)
        raise
    return x


@ps.service
async def bodies() -> int:
    global started
    count, started = started, 0
    return count


@ps.service
async def noop(x: list[float]) -> float:
    return sum(x)


@ps.service
async def ticks(n: int):  # type: ignore[no-untyped-def]
    for i in range(n):
        await asyncio.sleep(0.001)
        yield i


@ps.service
async def census() -> tuple[float, int, int]:
    """MiB resident, objects that the collector knows, and blocks that the interpreter has allocated, after a collection."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20, len(gc.get_objects()) + gc.get_freeze_count(), sys.getallocatedblocks()


@ps.service(on=ps.Thread(4))
def burn(seconds: float, release: bool) -> int:
    """Keeps a thread busy, with the GIL or without it."""
    if release:
        import hashlib

        block, end, n = bytes(1 << 20), time.monotonic() + seconds, 0
        while time.monotonic() < end:
            hashlib.sha256(block).digest()
            n += 1
        return n
    end, n = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        n += 1
    return n


app = ps.App(slow, aslow, bodies, noop, ticks, census, burn, log=False)


async def ask(port: int, path: str, body: str, read: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    method = "POST" if body else "GET"
    writer.write(
        f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
    )
    data = b""
    if read:
        head = await reader.readuntil(b"\r\n\r\n")
        data = await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.close()
    return reader, writer, data


async def row_g(port: int) -> None:
    for path in ("/slow", "/aslow"):
        callers = [await ask(port, path, '{"x": 1}', read=False) for _ in range(6)]
        await asyncio.sleep(0.5)
        gone = time.time()
        for _, writer, _ in callers:
            writer.close()
        await asyncio.sleep(2.0)
        print(
            f"G {path}: bodies started {(await ask(port, '/bodies', '{}'))[2].decode()} (callers left at {gone:.3f})",
            flush=True,
        )


async def row_h(port: int, requests: int) -> None:
    async def client(n: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = b'{"x": [1.0, 2.0]}'
        request = b"POST /noop HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        for _ in range(n):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.close()

    async def abort() -> None:
        reader, writer, _ = await ask(port, "/ticks", '{"n": 1000000}', read=False)
        await reader.readuntil(b"data: 2")
        writer.transport.abort()

    async def aborts() -> None:
        for _ in range(100):
            await asyncio.gather(*(abort() for _ in range(100)))

    async def counted() -> list[float]:
        await asyncio.sleep(1.0)
        return [float(n) for n in json.loads((await ask(port, "/census", "{}"))[2])]

    def show(what: str, before: list[float], after: list[float]) -> None:
        grown = [
            f"{last:,.{digits}f} {unit} ({last / first - 1:+.1%})"
            for first, last, digits, unit in zip(before, after, (1, 0, 0), ("MiB", "objects", "blocks"), strict=True)
        ]
        print(f"H {what}: {', '.join(grown)}; before {before[0]:,.1f} MiB, {before[1]:,.0f}, {before[2]:,.0f}", flush=True)

    await counted()  # the first call of it imports
    await asyncio.gather(*(client(requests // 320) for _ in range(32)))
    first = await counted()
    await asyncio.gather(*(client(requests * 9 // 320) for _ in range(32)))
    before = await counted()
    show(f"requests {requests // 10:,} to {requests:,}", first, before)
    await aborts()
    after = await counted()
    show("10,000 aborted streams, the first of this server", before, after)
    await aborts()
    show("10,000 more", after, await counted())


async def row_k(port: int) -> None:
    for release in (True, False):
        load = [
            asyncio.ensure_future(ask(port, "/burn", f'{{"seconds": 6, "release": {str(release).lower()}}}')) for _ in range(4)
        ]
        await asyncio.sleep(0.5)
        took = []
        end = time.monotonic() + 4.5
        while time.monotonic() < end:
            began = time.perf_counter()
            await ask(port, "/healthz", "")
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
        await asyncio.gather(*load)
        took.sort()
        kind = "that release the GIL" if release else "of pure Python"
        p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
        print(
            f"K /healthz beside 4 busy bodies {kind}: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms ({len(took)} probes)",
            flush=True,
        )


async def main() -> None:
    rows = [arg for arg in sys.argv[1:] if arg in "GHK"] or ["G", "H", "K"]
    requests = int(sys.argv[sys.argv.index("--requests") + 1]) if "--requests" in sys.argv else 200_000
    server = subprocess.Popen(
        [sys.executable, "-m", "penstock", "serve", "behaviour:app", "--port", "0"], cwd=HERE, stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    port = 0
    while not port:
        line = server.stderr.readline()
        if " is up at http://127.0.0.1:" in line:
            port = int(line.split("127.0.0.1:")[1].split()[0])
    try:
        if "G" in rows:
            await row_g(port)
        if "H" in rows:
            await row_h(port, requests)
        if "K" in rows:
            await row_k(port)
    finally:
        server.terminate()
        server.wait(10)


if __name__ == "__main__":
    asyncio.run(main())
