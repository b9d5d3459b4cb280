"""One JSON line a call on stderr, written in groups. Inputs and answers are never in it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

import msgspec

from penstock.runtime.log import Entry, Reader


class Line(msgspec.Struct, omit_defaults=True, gc=False):
    """What is written of one call. `at` is seconds since 1970, when it arrived; what has its default is left out."""

    at: float
    id: str
    service: str
    outcome: str
    ran_ms: float
    queued_ms: float = 0.0
    batched_ms: float = 0.0
    streamed_ms: float = 0.0
    tenant: str = ""
    error: str = ""
    batch: int = 1
    released: str = "alone"
    items: int = 0


_encode = msgspec.json.Encoder().encode_lines


def access_log(out: TextIO | None = None) -> Reader:
    """A reader of the log that writes root calls as lines; inner calls are in the trace of their root."""

    def write(entries: Sequence[Entry]) -> None:
        stream = sys.stderr if out is None else out
        stream.write(_encode(list(_lines(entries))).decode())
        stream.flush()

    return write


def _lines(entries: Sequence[Entry]) -> Iterator[Line]:
    offset = time.time() - time.monotonic()
    for entry in entries:
        identity, service, tenant, outcome, error, arrived, queued, batched, ran, streamed, batch, why, _, items, parent = entry
        if parent:
            continue
        line = Line((arrived + offset) * 1e3 // 1 / 1e3, identity, service, outcome, ran * 1e6 // 1 / 1e3)
        if queued or batched or streamed:
            line.queued_ms, line.batched_ms = queued * 1e6 // 1 / 1e3, batched * 1e6 // 1 / 1e3
            line.streamed_ms = streamed * 1e6 // 1 / 1e3
        if tenant:
            line.tenant = tenant
        if error:
            line.error = error
        if why and why != "alone":
            line.batch, line.released = batch, why
        if items:
            line.items = items
        yield line
