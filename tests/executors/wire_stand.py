"""Frames read back as a peer would read them, with shared memory between the two sides."""

from __future__ import annotations

from typing import Any

from penstock.executors.child.wire import Encoded, Reader


class Pipe:
    """What was encoded, read again in pieces of any size."""

    def __init__(self, data: bytes = b"", most: int = 1 << 30) -> None:
        self.data = memoryview(data)
        self.most = most

    def recv_into(self, buffer: Any) -> int:
        n = min(len(buffer), len(self.data), self.most)
        buffer[:n] = self.data[:n]
        self.data = self.data[n:]
        return n


def bytes_of(*frames: Encoded) -> bytes:
    return b"".join(bytes(piece) for frame in frames for piece in frame.pieces)


def read(reader: Reader) -> list[tuple[int, int, Any]]:
    found = []
    while True:
        while (frame := reader.next()) is not None:
            found.append((frame.kind, frame.number, frame.load()))
        if not reader.fill():
            return found
