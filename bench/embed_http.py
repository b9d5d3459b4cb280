#!/usr/bin/env python3
"""Row F: MiniLM over HTTP, 64 clients with one distinct text each, beside the offline bound of the same engine.

    python bench/embed_http.py [seconds]

The server (one thread of the engine) is on processor 0, the clients on the last one; the bound is measured on
processor 0 in the same run, by the best of singles and of batches of 8, 32 and 64.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
WORDS = re.findall(r"[A-Za-z]{2,}", (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text())


def text(random: Random, kind: str) -> str:
    count = 8 if kind == "short" else int(3 * (200 / 3) ** random.random())
    start = random.randrange(len(WORDS) - count)
    return " ".join(WORDS[start : start + count]) + f" {random.randrange(10**6)}"


def bound(kind: str) -> float:
    """Texts a second, offline; run in a child that is pinned."""
    from offline_embed import minilm

    os.environ["OMP_NUM_THREADS"] = "1"
    engine, random = minilm(), Random(0)
    texts = [text(random, kind) for _ in range(256)]
    best = 0.0
    for size in (1, 8, 32, 64):
        engine(texts[:size])
        began = time.perf_counter()
        for start in range(0, len(texts), size):
            engine(texts[start : start + size])
        best = max(best, len(texts) / (time.perf_counter() - began))
    return best


async def load(port: int, kind: str, seconds: float) -> float:
    random, done = Random(1), 0
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            body = json.dumps({"text": text(random, kind)}).encode()
            writer.write(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            assert b" 200 " in head[:20], head
            done += 1
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(64)))
    return done / (time.perf_counter() - began)


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "bound":
        print(bound(sys.argv[2]))
        return
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
    last = str((os.cpu_count() or 1) - 1)
    for kind in ("short", "mixed"):
        offline = ["taskset", "-c", "0", sys.executable, __file__, "bound", kind]
        before = float(subprocess.run(offline, capture_output=True, text=True, check=True).stdout)
        server = subprocess.Popen(
            ["taskset", "-c", "0", sys.executable, "-m", "penstock", "serve", "demo.app:app", "--port", "0"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert server.stderr is not None
        line = ""
        while " is up at http://127.0.0.1:" not in line:
            line = server.stderr.readline()
        os.sched_setaffinity(0, {int(last)})
        port = int(line.split("127.0.0.1:")[1].split()[0])
        asyncio.run(load(port, kind, 2.0))
        rate = asyncio.run(load(port, kind, seconds))
        server.terminate()
        server.wait(20)
        after = float(subprocess.run(offline, capture_output=True, text=True, check=True).stdout)
        best = max(before, after)
        print(
            f"F {kind:6} {rate:6.1f} texts/s over HTTP, offline bound {before:.1f} and {after:.1f}: {rate / best:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
