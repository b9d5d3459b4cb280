"""One socket to a child, on the event loop: frames are written at once where the system takes them, and read whole."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from penstock.executors.child.arena import Inbox
from penstock.executors.child.wire import Encoded, Frame, Reader, WireError
from penstock.executors.lookout import lookout

_TURNS = 16  # reads in one turn of the loop, so that a child that floods does not starve the rest


class Channel:
    """Calls `on_frame` for each frame, and `on_end` once, when the other side has gone or has written garbage."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        inbox: Inbox,
        freed: Callable[[int], None],
        on_frame: Callable[[Frame], None],
        on_end: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._reader = Reader(sock, inbox, freed)
        self._on_frame = on_frame
        self._on_end = on_end
        self._backlog: deque[memoryview] = deque()
        self.open = True
        self.garbage = False  # has been read, so nothing more is
        loop.add_reader(sock.fileno(), self._readable)
        lookout(loop).add(sock.fileno(), self._readable)

    def write(self, encoded: Encoded) -> None:
        """Write now what the socket takes, and the rest as it drains."""
        if not self.open:
            return
        if self._backlog:
            self._backlog.extend(memoryview(piece) for piece in encoded.pieces)
            return
        for n, piece in enumerate(encoded.pieces):
            size = len(piece)
            try:
                sent = self._sock.send(piece)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # its end is read as well, and reported from there
            if sent < size:
                self._backlog.append(memoryview(piece)[sent:])
                self._backlog.extend(memoryview(late) for late in encoded.pieces[n + 1 :])
                self._loop.add_writer(self._sock.fileno(), self._writable)
                return

    def _writable(self) -> None:
        backlog = self._backlog
        try:
            while backlog:
                sent = self._sock.send(backlog[0])
                if sent < len(backlog[0]):
                    backlog[0] = backlog[0][sent:]
                    return
                backlog.popleft()
        except BlockingIOError:
            return
        except OSError:
            backlog.clear()
        if self.open:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        if self.open and not self.drain(_TURNS):
            self.close()
            self._on_end()

    def drain(self, turns: int = 1 << 30) -> bool:
        """Read what has arrived; False when the stream has ended, or cannot be trusted."""
        reader = self._reader
        for _ in range(turns):
            try:
                more = reader.fill()
            except BlockingIOError:
                return True
            except OSError:
                return False
            while self.open:
                try:
                    frame = reader.next()
                except (WireError, ValueError):
                    self.garbage = True
                    return False
                if frame is None:
                    break
                self._on_frame(frame)
                if reader.empty:
                    break
            if not more:
                return False
            if not self.open or not reader.full:
                return True
        return True

    def close(self) -> None:
        """Let go of the socket."""
        if not self.open:
            return
        self.open = False
        fd = self._sock.fileno()
        lookout(self._loop).remove(fd)
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)
        self._backlog.clear()
        self._sock.close()
