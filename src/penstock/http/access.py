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
        lines = [_line(entry, offset) for entry in entries if entry.root]
        if lines:
            stream = sys.stderr if out is None else out
            stream.write("".join(lines))
            stream.flush()

    return write


def _line(e: Entry, offset: float) -> str:
    """Milliseconds; names and ids are checked to be plain ASCII where they come in, the rest is escaped."""
    extra = ""
    if e.tenant:
        extra += f', "tenant": {json.dumps(e.tenant)}'
    if e.error:
        extra += f', "error": "{e.error}"'
    if e.batch > 1:
        extra += f', "batch": {e.batch}, "released": "{e.released}"'
    if e.items:
        extra += f', "items": {e.items}'
    return (
        '{"at": %.3f, "id": %s, "service": "%s", "outcome": "%s", "queued_ms": %.3f, "batched_ms": %.3f, '
        '"ran_ms": %.3f, "streamed_ms": %.3f%s}\n'
        % (
            e.arrived + offset,
            f'"{e.id}"' if e.id.isalnum() else json.dumps(e.id),
            e.service,
            e.outcome,
            e.queued * 1e3,
            e.batched * 1e3,
            e.ran * 1e3,
            e.streamed * 1e3,
            extra,
        )
    )
