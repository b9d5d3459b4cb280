"""A reader of the log that does its work in a thread of its own, so that no call waits for it.

What it cannot keep up with is dropped and counted; nothing grows without bound.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

_MOST = 2000  # groups that wait


class Aside:
    """Calls `work(group)` in its thread for every group that was read; `close` waits for what was read before."""

    def __init__(self, name: str, work: Callable[[Sequence[Any]], None]) -> None:
        self.dropped = 0
        self._work = work
        self._groups: SimpleQueue[Sequence[Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def read(self, entries: Sequence[Any]) -> None:
        """A reader of the log, which may be given other things as well."""
        if self._groups.qsize() < _MOST:
            self._groups.put(entries)
        else:
            self.dropped += len(entries)

    def close(self, within: float = 5.0) -> None:
        self._groups.put(None)
        self._thread.join(within)

    def _run(self) -> None:
        while (entries := self._groups.get()) is not None:
            try:
                self._work(entries)
            except Exception:
                logging.getLogger("penstock").exception("%s failed", self._thread.name)
