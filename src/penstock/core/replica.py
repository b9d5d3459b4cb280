"""One slot of a station: a thread, a process, an instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.core.request import Work


class Replica:
    """`freed` is when it last became idle.

    One that is `leaving` takes no new work; when it runs nothing more it is `gone`, and its place may be used again
    once its executor has put it away (`vacant`).
    """

    __slots__ = ("freed", "gone", "index", "leaving", "staged", "up", "vacant", "work")

    def __init__(self, index: int) -> None:
        self.index = index
        self.up = False
        self.work: Work | None = None
        self.staged: Work | None = None
        self.freed = 0.0
        self.leaving = self.gone = self.vacant = False
