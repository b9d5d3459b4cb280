"""Messages between a parent and its own child: pickle protocol 5 in length-prefixed frames.

A frame is a header (version, number of buffers, length of the pickle), the length of each out-of-band buffer, the
pickle, and the buffers, so that arrays and bytes are neither copied into the pickle nor out of it. Never used for
bytes from the network.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from typing import Any

VERSION = 1
_HEAD = struct.Struct("<BxHI")
_SIZE = struct.Struct("<Q")
_MOST = 1 << 40


class WireError(Exception):
    """The other side wrote what is no frame."""


def encode(message: Any) -> list[bytes | memoryview]:
    """The frame, in pieces to be written in order. Raises what pickling raises."""
    buffers: list[pickle.PickleBuffer] = []
    payload = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    if len(views) > 0xFFFF:
        payload, views = pickle.dumps(message, protocol=5), []
    head = _HEAD.pack(VERSION, len(views), len(payload)) + b"".join(_SIZE.pack(view.nbytes) for view in views)
    if not views and len(payload) < 65536:
        return [head + payload]
    return [head, payload, *views]


class Decoder:
    """Feed it bytes as they come; it yields messages."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.needed = _HEAD.size

    def feed(self, data: bytes) -> Iterator[Any]:
        self.buffer += data
        while len(self.buffer) >= self.needed:
            frame = self._frame()
            if frame is None:
                return
            yield frame[0]

    def _frame(self) -> tuple[Any] | None:
        buffer = self.buffer
        version, count, length = _HEAD.unpack_from(buffer)
        if version != VERSION:
            raise WireError(f"frame version {version}, expected {VERSION}")
        start = _HEAD.size + count * _SIZE.size
        if len(buffer) < start:
            self.needed = start
            return None
        sizes = [_SIZE.unpack_from(buffer, _HEAD.size + n * _SIZE.size)[0] for n in range(count)]
        end = start + length + sum(sizes)
        if end > _MOST:
            raise WireError(f"a frame of {end} bytes")
        if len(buffer) < end:
            self.needed = end
            return None
        whole = memoryview(bytes(buffer[:end])) if count else memoryview(buffer)[:end]
        at, views = start + length, []
        for size in sizes:
            views.append(whole[at : at + size])
            at += size
        message = pickle.loads(whole[start : start + length], buffers=views)  # noqa: S301 - our own child or parent
        whole.release() if not count else None
        del buffer[:end]
        self.needed = _HEAD.size
        return (message,)


def receive(read: Callable[[int], bytes]) -> Iterator[Any]:
    """Messages from a blocking reader, until its end."""
    decoder = Decoder()
    while data := read(1 << 20):
        yield from decoder.feed(data)
