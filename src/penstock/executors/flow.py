"""How a stream's reader acknowledges what it took to a producer that is far away.

The producer's own side is `child.window`.
"""

from __future__ import annotations


class Credit:
    """Groups acknowledgements before they cross to another process: half a window at a time.

    A producer that is blocked has sent a whole window, so half of it always comes back.
    """

    __slots__ = ("_owed", "_step")

    def __init__(self, size: int) -> None:
        self._step = max(1, size // 2)
        self._owed = 0

    def take(self, count: int) -> int:
        """How many items to acknowledge to the producer now."""
        self._owed += count
        if self._owed < self._step:
            return 0
        owed, self._owed = self._owed, 0
        return owed
