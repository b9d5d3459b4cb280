"""Running a batch again in parts, to find out which of its requests it was.

After a death each half runs alone, and a half that dies is halved again. One request to blame costs ceil(log2 n) more
deaths; one more than that are spent on a batch of n, and then what is left fails with it. So a death counts against a
request only when it ran alone, or when several kill. A batch that ran out of memory is halved in the same way, and no death is
spent on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Trial:
    """One work's parts. `results` is complete once `part()` is None."""

    def __init__(self, count: int) -> None:
        self.results: list[Any] = [None] * count
        self.deaths = 0
        self.left = False  # nobody waits for it any more
        self.most = (count - 1).bit_length() + 2  # the first one is not the trial's
        self._parts = [range(count)]

    def part(self) -> range | None:
        """The requests that run next."""
        return self._parts[-1] if self._parts else None

    def answered(self, results: Sequence[Any]) -> None:
        """The part ran to its end."""
        part = self._parts.pop()
        self.results[part.start : part.stop] = results

    def died(self, error: BaseException) -> None:
        """The process died with this part."""
        self.deaths += 1
        if not self.halve():
            self.answered([error])
        if self.deaths >= self.most:
            self.fail(error)

    def halve(self) -> bool:
        """Run the part's halves instead; False if it is one request."""
        part = self._parts[-1]
        if len(part) == 1:
            return False
        middle = part.start + (len(part) + 1) // 2
        self._parts[-1:] = [range(middle, part.stop), range(part.start, middle)]
        return True

    def fail(self, error: BaseException) -> None:
        """Nothing more is tried."""
        while self._parts:
            self.answered([error] * len(self._parts[-1]))
