"""Shared memory between a parent and one child, one way: the sender allocates and copies in once, the receiver reads there.

An arena is an anonymous file (memfd) that both have mapped, so it needs no name and cannot be left behind: it is gone
with its last mapping, however the processes end. It has its full size from the start and takes memory only where it was
written. A region belongs to the receiver until the last view of it has died; then its offset goes back with the next
frame. A view keeps the mapping, so it outlives the other process, and this one's use of the arena.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
import weakref
from bisect import insort
from collections import deque
from ctypes import c_char
from typing import Any

SIZE = 512 << 20
KEEP = 64 << 20  # bytes that stay allocated to the file; what lies above is given back to the system when it is free
_PAGE = mmap.PAGESIZE


def create(size: int | None = None) -> int:
    """A file descriptor of a new arena."""
    size = SIZE if size is None else size
    if hasattr(os, "memfd_create"):
        import fcntl

        fd = os.memfd_create("penstock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)  # a shrunk file would kill its reader
        return fd
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), size)
        return os.dup(file.fileno())


class Outbox:
    """The sending side. Regions may be given back by any thread."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, 0)
        self._free: list[tuple[int, int]] = [(0, len(self._map))]  # (start, end), in order, never touching
        self._sizes: dict[int, int] = {}
        self._returned: deque[int] = deque()
        self._lock = threading.Lock()

    def put(self, raw: memoryview) -> int | None:
        """Copy this in; its offset, or None if there is no room (first fit)."""
        need = -(-raw.nbytes // _PAGE) * _PAGE
        with self._lock:
            while self._returned:
                self._take_back(self._returned.popleft())
            fits = next((n for n, (start, end) in enumerate(self._free) if end - start >= need), None)
            if fits is None:
                return None
            start, end = self._free[fits]
            self._free[fits : fits + 1] = [(start + need, end)] if end - start > need else []
            self._sizes[start] = need
        self._map[start : start + raw.nbytes] = raw
        return start

    def close(self) -> None:
        """The other side has gone."""
        self._map.close()

    def free(self, offset: int) -> None:
        """The receiver does not need this region any more."""
        self._returned.append(offset)

    def used(self) -> int:
        """Bytes that are in use, by what has been heard so far."""
        with self._lock:
            while self._returned:
                self._take_back(self._returned.popleft())
            return sum(self._sizes.values())

    def _take_back(self, start: int) -> None:
        size = self._sizes.pop(start, 0)
        if not size:
            return
        free, end = self._free, start + size
        if end > KEEP and hasattr(mmap, "MADV_REMOVE"):
            low = max(start, KEEP)
            self._map.madvise(mmap.MADV_REMOVE, low, end - low)
        insort(free, (start, end))
        n = free.index((start, end))
        if n + 1 < len(free) and free[n + 1][0] == end:
            free[n : n + 2] = [(start, free[n + 1][1])]
        if n and free[n - 1][1] == start:
            free[n - 1 : n + 1] = [(free[n - 1][0], free[n][1])]


class _Region(weakref.ref):  # type: ignore[type-arg]
    """Knows when the last view of its region has died."""

    __slots__ = ("offset",)
    offset: int


class Inbox:
    """The receiving side. `released` are offsets that the sender may use again; views may die in any thread."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, 0)
        self.released: deque[int] = deque()
        self._live: dict[int, Any] = {}

    def close(self) -> None:
        """The other side has gone. Views that are left keep the mapping."""
        with contextlib.suppress(BufferError):
            self._map.close()

    def view(self, offset: int, size: int) -> memoryview:
        """The region, where it lies. Arrays made of it, and their views, keep it; so ctypes, which has weak references."""
        if offset < 0 or offset + size > len(self._map):
            raise ValueError(f"no region of {size} bytes at {offset}")
        holder = (c_char * size).from_buffer(self._map, offset)
        live, released = self._live, self.released

        def died(region: Any) -> None:
            del live[region.offset]
            released.append(region.offset)

        region = _Region(holder, died)
        region.offset = offset
        live[offset] = region
        return memoryview(holder).cast("B")
