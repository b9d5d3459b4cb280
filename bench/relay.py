"""What a relayed chat costs: `penstock serve --chat URL#model` in a process of its own, in front of a server that is not ours.

    python bench/relay.py

CPU seconds of the relaying process for each event of a stream, from its socket to its client's, read by bare sockets here.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from foreign_openai import apart
from served import Child


async def read(port: int, tokens: int) -> int:
    """One streamed chat; how many events it had."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    messages = [{"role": "user", "content": "x"}]
    body = json.dumps({"model": "m", "stream": True, "max_tokens": tokens, "messages": messages}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer.write(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
    data = await reader.read()
    writer.close()
    assert b"data: [DONE]" in data, data[-300:]
    return data.count(b"data: ") - 1


async def main(port: int, process: psutil.Process) -> None:
    for streams, tokens in ((16, 300), (16, 2000), (16, 2000), (64, 500), (1, 8000)):
        before, began = sum(process.cpu_times()[:2]), time.monotonic()
        events = sum(await asyncio.gather(*(read(port, tokens) for _ in range(streams))))
        cpu, wall = sum(process.cpu_times()[:2]) - before, time.monotonic() - began
        print(
            f"{streams:3} streams of {tokens:5} tokens: {1e6 * cpu / events:5.1f} us CPU an event, {events / wall:8,.0f} events/s"
        )


if __name__ == "__main__":
    with apart() as (_, url):
        child = Child("serve", "--chat", f"m={url}#tiny", "--port", "0")
        try:
            port = int(child.until(r"is up at http://\S+:(\d+)")[1])
            asyncio.run(main(port, psutil.Process(child.process.pid)))
        finally:
            child.close()
