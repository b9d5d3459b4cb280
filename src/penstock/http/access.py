"""One JSON line a call on stderr, written in groups. Inputs and answers are never in it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from penstock.runtime.log import Entry, Reader


def access_log(out: TextIO | None = None) -> Reader:
    """A reader of the log that writes root calls as lines; inner calls are in the trace of their root."""

    def write(entries: Sequence[Entry]) -> None:
        offset = time.time() - time.monotonic()
        lines = [_line(offset, *entry) for entry in entries if entry[14]]
        if lines:
            stream = sys.stderr if out is None else out
            stream.write("".join(lines))
            stream.flush()

    return write


def _line(
    offset: float,
    identity: str,
    service: str,
    tenant: str,
    outcome: str,
    error: str,
    arrived: float,
    queued: float,
    batched: float,
    ran: float,
    streamed: float,
    batch: int,
    released: str,
    replica: int,
    items: int,
    root: bool,
) -> str:
    """Milliseconds; names are checked to be plain ASCII where they come in, the rest is escaped."""
    if not identity.isalnum():
        identity = json.dumps(identity)[1:-1]
    extra = ""
    if tenant:
        extra += f', "tenant": {json.dumps(tenant)}'
    if error:
        extra += f', "error": "{error}"'
    if batch > 1:
        extra += f', "batch": {batch}, "released": "{released}"'
    if items:
        extra += f', "items": {items}'
    wait = '"queued_ms": 0, "batched_ms": 0'
    if queued or batched:
        wait = f'"queued_ms": {queued * 1e3:.3f}, "batched_ms": {batched * 1e3:.3f}'
    if streamed:
        extra = f', "streamed_ms": {streamed * 1e3:.3f}{extra}'
    return (
        f'{{"at": {arrived + offset:.3f}, "id": "{identity}", "service": "{service}", "outcome": "{outcome}", '
        f'{wait}, "ran_ms": {ran * 1e3:.3f}{extra}}}\n'
    )
