"""One JSON line a call on stderr, written in groups. Inputs and answers are never in it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

import msgspec

from penstock.runtime.log import Entry, Reader


class Line(msgspec.Struct, omit_defaults=True):
    """What operators get to see of a call. Milliseconds."""

    at: float
    id: str
    service: str
    outcome: str
    total_ms: float
    queued_ms: float = 0.0
    batched_ms: float = 0.0
    ran_ms: float = 0.0
    streamed_ms: float = 0.0
    tenant: str = ""
    error: str = ""
    batch: int = 0
    released: str = ""
    items: int = 0


def access_log(out: TextIO | None = None) -> Reader:
    """A reader of the log that writes root calls as lines; inner calls are in the trace of their root."""
    encode = msgspec.json.Encoder().encode

    def write(entries: Sequence[Entry]) -> None:
        offset = time.time() - time.monotonic()
        lines = [encode(_line(entry, offset)) for entry in entries if entry.root]
        if lines:
            stream = sys.stderr if out is None else out
            stream.write(b"\n".join(lines).decode() + "\n")
            stream.flush()

    return write


def _line(e: Entry, offset: float) -> Line:
    return Line(
        at=round(e.arrived + offset, 3),
        id=e.id,
        service=e.service,
        outcome=e.outcome,
        total_ms=round((e.queued + e.batched + e.ran + e.streamed) * 1e3, 3),
        queued_ms=round(e.queued * 1e3, 3),
        batched_ms=round(e.batched * 1e3, 3),
        ran_ms=round(e.ran * 1e3, 3),
        streamed_ms=round(e.streamed * 1e3, 3),
        tenant=e.tenant,
        error=e.error,
        batch=e.batch if e.batch > 1 else 0,
        released=e.released if e.batch > 1 else "",
        items=e.items,
    )
