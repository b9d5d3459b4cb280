"""One connection of the load generator: a request out, an answer in, timed in the protocol's own callbacks.

There is no task, no future and no stream object a request, so that one core generates more than most servers take.
Events of a stream are told apart as they arrive: by blank lines in `text/event-stream`, by lines in NDJSON.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools

if TYPE_CHECKING:
    from penstock.cli.bench.load import Load


class Connection(asyncio.Protocol):
    """Carries one request at a time; `start` is when the one it carries was due, 0 while it carries none."""

    __slots__ = ("begun", "failed", "first", "items", "kind", "last", "left", "load", "parser", "sized", "start", "transport")

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: asyncio.Transport
        self.parser = httptools.HttpResponseParser(self)
        self.start = 0.0
        self.kind = b""  # the separator of a stream's events; empty for a whole answer
        self.left = b""
        self.first = self.last = 0.0
        self.items = 0
        self.begun = False  # whether any of the answer has come
        self.sized = False  # whether the answer says itself where it ends
        self.failed = ""

    def send(self, start: float, request: bytes) -> None:
        """Begin a request that was due at `start`."""
        self.start = start
        self.begun = False
        self.first = 0.0
        self.items = 0
        self.failed = ""
        self.transport.write(request)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.failed = self.failed or "not HTTP"
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and self.start and self.begun and not self.sized and not self.failed:
            self.load.answered(self, self.parser.get_status_code(), False)  # it ends where the connection does
        else:
            self.load.lost(self, self.failed or ("broken off" if self.begun else "closed"))

    # httptools

    def on_message_begin(self) -> None:
        self.begun = True
        self.sized = False
        self.kind = self.left = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 12 and name.lower() == b"content-type":
            if value.startswith(b"text/event-stream"):
                self.kind = b"\n\n"
            elif value.startswith((b"application/x-ndjson", b"application/jsonl")):
                self.kind = b"\n"
        elif len(name) in (14, 17) and name.lower() in (b"content-length", b"transfer-encoding"):
            self.sized = True

    def on_body(self, data: bytes) -> None:
        if self.kind:
            now = monotonic()
            data = self.left + data
            if self.kind == b"\n\n" and b"\r\n" in data:
                data = data.replace(b"\r\n", b"\n")
            *events, self.left = data.split(self.kind)
            for event in events:
                self._event(event, now)

    def _event(self, event: bytes, now: float) -> None:
        event = event.strip()
        if self.kind == b"\n\n":
            lines = event.split(b"\n")
            if any(line.startswith(b"event: error") for line in lines):
                self.failed = "error in the stream"
                return
            if b"event: end" in lines or not any(line.startswith(b"data") for line in lines):
                return  # heartbeats, `retry:` and the terminal event carry no item
        elif not event:
            return
        elif event.startswith(b'{"error":'):
            self.failed = "error in the stream"
            return
        if self.items:
            self.load.tally.gaps.append(now - self.last)
        else:
            self.first = now
        self.last = now
        self.items += 1

    def on_message_complete(self) -> None:
        status = self.parser.get_status_code()
        if status < 200:
            return  # 100 Continue, 103 Early Hints: the answer is still to come
        if self.start:
            self.load.answered(self, status, self.parser.should_keep_alive())
