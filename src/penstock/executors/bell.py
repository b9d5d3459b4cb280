"""How the loop and a thread wake each other: by eventfd where the kernel has it.

What wakes and what is woken want the same GIL. A lock is released with the GIL held, so the thread that wakes runs into
it, sleeps again, and is woken twice more until it has it: six switches for one call, as a trace of the scheduler showed.
A write to a descriptor lets go of the GIL meanwhile, so whoever wakes finds it free: two switches. And on uvloop
`call_soon_threadsafe` costs more than the rest of a hand-off, a descriptor that the loop watches a third of that.

Descriptors live as long as anyone may write to them: a thread that outlives its loop rings into nothing, never into a
descriptor that has become somebody else's.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from functools import partial


def _eventfd(flags: int = 0) -> int:
    """A new descriptor, or -1 where there is none to have."""
    if not hasattr(os, "eventfd"):  # not Linux
        return -1
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | flags)
    except OSError:  # no descriptor is left
        return -1


class Bell:
    """`ring()` from any thread makes the loop call `answer()` soon. Rings before the answer are one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Callable[[], None]) -> None:
        self._loop = loop
        self._answer = answer
        self._fd = _eventfd(getattr(os, "EFD_NONBLOCK", 0))
        self.ring: Callable[[], object] = self._call
        if self._fd >= 0:
            try:
                loop.add_reader(self._fd, self._rung)
            except NotImplementedError:
                return
            self.ring = partial(os.eventfd_write, self._fd, 1)

    def _rung(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:  # reported twice
            return
        self._answer()

    def _call(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # the loop is closed, and with it everybody who could want to know
            pass

    def silence(self) -> None:
        """The loop listens no longer."""
        if self.ring != self._call and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class Gate:
    """Where one thread sleeps: each `wait()` ends with one `open()`, also one that came before."""

    def __init__(self) -> None:
        self._fd = _eventfd()
        self.open: Callable[[], object]
        if self._fd >= 0:
            self.open = partial(os.eventfd_write, self._fd, 1)
            self._sleep: Callable[[], object] = partial(os.eventfd_read, self._fd)
        else:
            lock = threading.Lock()
            lock.acquire()
            self.open, self._sleep = lock.release, lock.acquire

    def wait(self) -> None:
        """Sleep until it is opened."""
        while True:
            try:
                self._sleep()
            except InterruptedError:  # a signal was delivered to this thread
                continue
            return

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
