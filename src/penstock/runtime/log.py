"""One log, many readers: what became of every call.

The hot path appends one tuple to a buffer. Readers get groups of entries, a fraction of a second later; without
readers only a ring of the latest is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

_FLUSH_AFTER = 0.05  # seconds
_FLUSH_AT = 64  # entries: more at once would be felt as latency


class Entry(NamedTuple):
    """One ended call. Times in seconds; `arrived` on the runtime's clock; `items` counts a stream's items.

    `parent` is the id of the call whose body made this one.
    """

    id: str
    service: str
    tenant: str
    outcome: str
    error: str
    arrived: float
    queued: float
    batched: float
    ran: float
    streamed: float
    batch: int
    released: str
    replica: int
    items: int
    parent: str

    @property
    def root(self) -> bool:
        """Whether it came from outside."""
        return not self.parent


_entry: Callable[[tuple[Any, ...]], Entry] = partial(tuple.__new__, Entry)  # as `Entry._make`, without a look at the length
Reader = Callable[[Sequence[Entry]], None]


class Log:
    """The record of a runtime. Appending is one list operation."""

    def __init__(self, loop: asyncio.AbstractEventLoop, keep: int = 2048) -> None:
        self.recent: deque[Any] = deque(maxlen=keep)
        self.buffer: list[Any] = []
        self.readers: list[Reader] = []
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def subscribe(self, reader: Reader) -> None:
        """`reader(entries)` is called on the loop with each group; what it raises is logged and dropped."""
        self.readers.append(reader)

    def append(self, entry: tuple[Any, ...]) -> None:
        if not self.readers:
            self.recent.append(entry)
            return
        if len(self.buffer) >= _FLUSH_AT:
            self.flush()
        self.buffer.append(entry)
        if self._timer is None:
            self._timer = self._loop.call_later(_FLUSH_AFTER, self.flush)

    def amend(self, id: str, outcome: str, error: str) -> None:  # noqa: A002 - the request's id
        """A call has ended otherwise than its entry says: its answer could not be sent. Readers who have it get another."""
        for entries in (self.buffer, self.recent):
            for n in range(len(entries) - 1, -1, -1):
                if entries[n][0] == id:
                    entry = (*entries[n][:3], outcome, error, *entries[n][5:])
                    if self.readers and entries is self.recent:
                        self.append(entry)
                    else:
                        entries[n] = entry
                    return

    def flush(self) -> None:
        """Give what was appended to the readers now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.buffer:
            return
        entries, self.buffer = list(map(_entry, self.buffer)), []
        self.recent.extend(entries)
        for reader in self.readers:
            try:
                reader(entries)
            except Exception:
                logging.getLogger("penstock").exception("a reader of the log failed")
