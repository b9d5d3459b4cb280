"""What must not wait until a loop has read all of its sockets.

A loop to which thousands of clients write at once comes late to everything else: libuv, which is beneath uvloop, goes
through up to 48 times 1,024 of them before a turn ends. A model that is done would stand idle for that long. So executors
say here where their workers tell them something, and whoever reads clients looks there, and only there, now and then.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

EVERY = 0.002  # seconds


class Lookout:
    """Of one loop. Whatever is called here the loop calls as well, so each may find nothing to do."""

    def __init__(self) -> None:
        self._answers: dict[int, Callable[[], None]] = {}
        self._asked: dict[Callable[[], None], None] = {}
        self._due = 0.0
        self._poll: select.poll | None = None  # there is none where there are no child processes to listen to

    def add(self, fd: int, answer: Callable[[], None]) -> None:
        """Call this when the descriptor can be read."""
        self._answers[fd] = answer
        if self._poll is None:
            self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def remove(self, fd: int) -> None:
        """Before it is closed."""
        if self._answers.pop(fd, None) is not None and self._poll is not None:
            self._poll.unregister(fd)

    def ask(self, answer: Callable[[], None]) -> None:
        """Call this at every look: it is as cheap as a look itself."""
        self._asked[answer] = None

    def forget(self, answer: Callable[[], None]) -> None:
        """Not any more."""
        self._asked.pop(answer, None)

    def glance(self) -> None:
        """Look, if that is due. Called before each of many things that a loop does in one turn."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + EVERY
            self._look()

    def _look(self) -> None:
        for asked in list(self._asked):
            asked()
        for fd, _ in self._poll.poll(0) if self._poll is not None and self._answers else ():
            answer = self._answers.get(fd)
            if answer is not None:  # else an answer before it has closed it
                answer()


_lookouts: WeakKeyDictionary[asyncio.AbstractEventLoop, Lookout] = WeakKeyDictionary()


def lookout(loop: asyncio.AbstractEventLoop) -> Lookout:
    """This loop's."""
    found = _lookouts.get(loop)
    if found is None:
        found = _lookouts[loop] = Lookout()
    return found
