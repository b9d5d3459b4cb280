"""The window of a stream: how far a producer on another thread or in a child may run ahead of its reader.

Credits as in HTTP/2 flow control: `sent - acknowledged <= size`, always. A blocked producer is woken only when half of
the window is free again, so that a reader that takes one item at a time costs one switch per half window, not one per
item. Each counter has one writer, so neither needs a lock.
"""

from __future__ import annotations

import threading


class Window:
    """Counts items between one producing thread and one acknowledging thread."""

    __slots__ = ("_acknowledged", "_free", "_sent", "_waiting", "closed", "size")

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self.closed = False
        self._sent = 0
        self._acknowledged = 0
        self._waiting = False
        self._free = threading.Event()

    def send(self) -> None:
        """The producer hands over one item."""
        self._sent += 1

    def wait(self) -> bool:
        """Block the producer until there is room; False when the stream was closed instead."""
        while not self.closed and self._sent - self._acknowledged >= self.size:
            self._free.clear()
            self._waiting = True
            if not self.closed and self._sent - self._acknowledged >= self.size:
                self._free.wait()
            self._waiting = False
        return not self.closed

    def acknowledge(self, count: int) -> None:
        """The reader took `count` items."""
        self._acknowledged += count
        if self._waiting and self._sent - self._acknowledged <= self.size // 2:
            self._free.set()

    def close(self) -> None:
        """Nobody reads any more: the producer stops at its next item."""
        self.closed = True
        self._free.set()
