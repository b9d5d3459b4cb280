"""A stream and a page that reads it: `penstock serve examples/stream.py:app`, then open http://127.0.0.1:8000/page."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import penstock as ps


@ps.service(safe=True)  # safe: a browser's EventSource can only GET
async def count(to: int) -> AsyncIterator[dict[str, int]]:
    """Counts up, a few numbers a second."""
    for i in range(to):
        yield {"i": i}
        await asyncio.sleep(0.02)


async def page(scope: Any, receive: Any, send: Any) -> None:
    """Any ASGI application can be mounted beside services; this one is a single page."""
    body = Path(__file__).with_suffix(".html").read_bytes()
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app = ps.App(count, mounts={"/page": page})
