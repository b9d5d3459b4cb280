"""Messages between a parent and its own child: pickle protocol 5 in frames, big buffers beside it.

A frame is a header, the place of each big buffer, the regions that the writer does not need any more, the pickle, and
those buffers that did not fit into shared memory. Buffers of `BIG` bytes and more (arrays, bytes) leave the pickle: they
are copied once, into the arena, and read where they lie. Smaller ones are cheaper inside. Kind and number stand
in the header, so that a parent can send the next batch before it reads an answer. Never used for bytes from a network.
"""

from __future__ import annotations

import pickle
import struct
from typing import TYPE_CHECKING, Any, Protocol

from .outofband import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .arena import Inbox, Outbox

VERSION = 2
MAGIC = 0x5350
BIG = 65536
READ = 65536

# Parent to child
LOAD, RUN, CREDIT, CANCEL, ANSWER, STOP, TELL = 1, 2, 3, 4, 5, 6, 7
# Child to parent
UP, BROKEN, DONE, OUTGROWN, ITEMS, CALL, DROP, BEAT = 17, 18, 19, 20, 21, 22, 23, 24

_HEAD = struct.Struct("<HBBIHHQ")  # magic, version, kind, number, buffers, released regions, bytes of the pickle
_PLACE = struct.Struct("<Qq")  # bytes, offset in the arena or -1: behind the pickle
_OFFSET = struct.Struct("<Q")
_MOST = 1 << 40


class WireError(Exception):
    """The other side wrote what is no frame."""


class Socket(Protocol):
    """What a reader needs of a socket."""

    def recv_into(self, buffer: Any, /) -> int: ...


class Encoded:
    """A frame that is ready to be written, the regions of the arena that it occupies, and those that it hands back."""

    __slots__ = ("pieces", "regions", "released")

    def __init__(self, pieces: list[Any], regions: list[int], released: list[int]) -> None:
        self.pieces = pieces
        self.regions = regions
        self.released = released

    def undo(self, outbox: Outbox, inbox: Inbox) -> None:
        """It will not be sent."""
        for offset in self.regions:
            outbox.free(offset)
        inbox.released.extend(self.released)


class _Raw:
    """Stands for bytes in a message, and pickles them as a buffer."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self.value), (pickle.PickleBuffer(self.value),)


_SUSPECT = frozenset((bytes, bytearray, memoryview, list, tuple, dict))
_FEW = 64


def lift(value: Any, depth: int = 4) -> Any:
    """The message with its big bytes replaced by what pickles as a buffer; looks into small containers only."""
    kind = type(value)
    if kind is list or kind is tuple:
        if depth and (depth > 2 or len(value) <= _FEW) and not _SUSPECT.isdisjoint(map(type, value)):
            lifted = [lift(v, depth - 1) if type(v) in _SUSPECT else v for v in value]
            return lifted if kind is list else tuple(lifted)
    elif kind is dict:
        if depth and len(value) <= _FEW and not _SUSPECT.isdisjoint(map(type, value.values())):
            return {k: lift(v, depth - 1) for k, v in value.items()}
    elif kind is memoryview or ((kind is bytes or kind is bytearray) and len(value) >= BIG):
        return _Raw(value)
    return value


def plain(values: Iterable[Any]) -> bool:
    """Whether none of these can be, or hold, big bytes."""
    return _SUSPECT.isdisjoint(map(type, values))


def encode(
    kind: int, number: int, message: Any, outbox: Outbox | None = None, inbox: Inbox | None = None, *, lifted: bool = False
) -> Encoded:
    """The frame, in pieces to be written in order. Raises what pickling raises, and then nothing is left behind.

    Big buffers go through `outbox`; regions that are not read any more are handed back to the sender of `inbox`. `lifted`:
    nothing in the message is big bytes.
    """
    buffers: list[memoryview] = []

    def big(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < BIG or len(buffers) == 0xFFFF:
            return True
        buffers.append(raw)
        return False

    payload = b"" if message is None else dumps(message if lifted else lift(message), big)
    released = inbox.released if inbox is not None else ()
    if not buffers and not released:
        head = _HEAD.pack(MAGIC, VERSION, kind, number, 0, 0, len(payload))
        return Encoded([head + payload] if len(payload) < BIG else [head, payload], [], [])
    places, regions, inline = [], [], []
    for raw in buffers:
        at = None if outbox is None else outbox.put(raw)
        if at is None:
            inline.append(raw)
        else:
            regions.append(at)
        places.append(_PLACE.pack(raw.nbytes, -1 if at is None else at))
    back = [released.popleft() for _ in range(min(len(released), 0xFFFF))] if released else []
    head = _HEAD.pack(MAGIC, VERSION, kind, number, len(places), len(back), len(payload))
    head = b"".join((head, *places, *[_OFFSET.pack(offset) for offset in back]))
    return Encoded([head + payload, *inline] if len(payload) < BIG else [head, payload, *inline], regions, back)


def together(frames: list[Encoded]) -> Encoded:
    """Several frames as one: what is small is written at once."""
    pieces: list[Any] = []
    small: list[Any] = []
    for frame in frames:
        for piece in frame.pieces:
            if len(piece) < BIG:
                small.append(piece)
                continue
            if small:
                pieces.append(b"".join(small))
                small = []
            pieces.append(piece)
    if small:
        pieces.append(b"".join(small))
    return Encoded(pieces, [], [])


class Frame:
    """A frame that has arrived whole. Load it before the next is read."""

    __slots__ = ("_buffers", "_payload", "kind", "number")

    def __init__(self, kind: int, number: int, payload: memoryview, buffers: list[memoryview]) -> None:
        self.kind = kind
        self.number = number
        self._payload = payload
        self._buffers = buffers

    def load(self) -> Any:
        """The message, once: the frame keeps nothing of it."""
        buffers, self._buffers = self._buffers, []
        return pickle.loads(self._payload, buffers=buffers) if len(self._payload) else None  # noqa: S301 - of our own child or parent


class Reader:
    """Frames from one socket. `inbox` is where the other side puts big buffers, `freed` hears what it has released."""

    def __init__(self, sock: Socket, inbox: Inbox | None = None, freed: Callable[[int], None] | None = None) -> None:
        self._sock = sock
        self._inbox = inbox
        self._freed = freed
        self._small = memoryview(bytearray(READ))
        self._buffer = self._small
        self._start = self._end = 0
        self.full = False  # the last read filled the buffer: there may be more
        self.empty = True  # every byte so far was part of a frame

    def fill(self) -> bool:
        """Read once; False at the end of the stream."""
        buffer = self._buffer
        if self._start == self._end and buffer is self._small:
            self._start = self._end = 0
        count = self._sock.recv_into(buffer[self._end :])
        self._end += count
        self.empty = False
        self.full = self._end == len(buffer)
        return count > 0

    def next(self) -> Frame | None:
        """The next whole frame, or None: `fill` first."""
        buffer, start = self._buffer, self._start
        have = self._end - start
        if have < _HEAD.size:
            self._room(_HEAD.size)
            return None
        magic, version, kind, number, count, back, length = _HEAD.unpack_from(buffer, start)
        if magic != MAGIC or version != VERSION:
            raise WireError(f"no frame of version {VERSION}")
        total = _HEAD.size + count * _PLACE.size + back * _OFFSET.size + length
        if count:
            if have < _HEAD.size + count * _PLACE.size:
                self._room(_HEAD.size + count * _PLACE.size)
                return None
            places = [_PLACE.unpack_from(buffer, start + _HEAD.size + n * _PLACE.size) for n in range(count)]
            total += sum([size for size, at in places if at < 0])
        if total > _MOST:
            raise WireError(f"a frame of {total} bytes")
        if have < total:
            self._room(total)
            return None
        self._start = start + total
        at = start + _HEAD.size + count * _PLACE.size
        if back and self._freed is not None:
            for n in range(back):
                self._freed(_OFFSET.unpack_from(buffer, at + n * _OFFSET.size)[0])
        at += back * _OFFSET.size
        payload = buffer[at : at + length]
        buffers = self._gather(places, at + length) if count else []
        if buffer is not self._small:  # a frame of its own size: nothing else is in this buffer
            self._buffer, self._start, self._end = self._small, 0, 0
        self.empty = self._start == self._end
        return Frame(kind, number, payload, buffers)

    def _gather(self, places: list[tuple[int, int]], at: int) -> list[memoryview]:
        views = []
        for size, offset in places:
            if offset < 0:
                views.append(self._buffer[at : at + size])
                at += size
            elif self._inbox is None:
                raise WireError("a frame points into shared memory that is not there")
            else:
                views.append(self._inbox.view(offset, size))
        return views

    def _room(self, needed: int) -> None:
        """Make place for a frame of `needed` bytes: a buffer of exactly that size if it is big, which buffers keep."""
        start, end, buffer = self._start, self._end, self._buffer
        if needed > len(self._small) and len(buffer) != needed:
            self._buffer = memoryview(bytearray(needed))
            self._buffer[: end - start] = buffer[start:end]
        elif start and start + needed > len(buffer):
            buffer[: end - start] = bytes(buffer[start:end])
        else:
            return
        self._start, self._end = 0, end - start
