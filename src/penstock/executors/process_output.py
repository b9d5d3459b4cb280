"""What children write to stdout and stderr, line by line, with the name of the replica before each line."""

from __future__ import annotations

import asyncio
import os
import sys

_LONGEST = 16384


class Output:
    """One pipe from a child, copied to the stream of the same name here. What arrives without an end waits for its line."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, stream: str, title: str) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._stream = stream
        self._title = title
        self._rest = b""
        loop.add_reader(fd, self.read)

    def read(self) -> bool:
        """Copy what has arrived; False when there is no more, for now or for ever."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        *lines, self._rest = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(self._rest) > _LONGEST:
            lines.append(self._rest)
            self._rest = b""
        self._write(lines)
        return True

    def close(self) -> None:
        """The child has gone, or has closed its end."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        self._loop.remove_reader(fd)
        os.close(fd)
        if self._rest:
            self._write([self._rest])

    def drain(self) -> None:
        """Copy what is left of a process that has ended; what it has started may still hold the other end."""
        while self._fd >= 0 and self.read():
            pass
        self.close()

    def _write(self, lines: list[bytes]) -> None:
        text = "".join([f"{self._title} | {line.decode(errors='replace')}\n" for line in lines if line.strip()])
        try:
            getattr(sys, self._stream).write(text)
            getattr(sys, self._stream).flush()
        except (OSError, ValueError, AttributeError):  # closed, full, or not there: a server goes on without it
            pass
