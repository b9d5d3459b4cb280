"""Items out of a streamed answer: lines of NDJSON, or server-sent events, as they come and no further than they are wanted."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.codec.read import line
from penstock.errors import PenstockError, RemoteFailed
from penstock.executors.remote_wire import EVENTS, NDJSON, URN, Wire, problem_error

STREAMS = (NDJSON, EVENTS, "application/jsonl")
_LINE_ERROR = b'{"error":{"type":"' + URN.encode()


class Items:
    """Cuts a body into items. What came and was not taken yet waits here, undecoded."""

    def __init__(self, wire: Wire, media: str, most: int, where: str) -> None:
        self.wire = wire
        self.where = where
        self.most = most
        self.events = media == EVENTS
        self.buffer = bytearray()
        self.at = 0  # where the next item begins
        self.held = b""  # half of a line's end
        self.over = False  # the stream said that it is complete

    def feed(self, data: bytes) -> None:
        """More of the body has come. Raises RemoteFailed when one item is too large."""
        if self.at > 1 << 16:
            del self.buffer[: self.at]
            self.at = 0
        if self.events:
            data = self.held + data
            self.held = data[-1:] if data.endswith(b"\r") else b""
            data = data[: len(data) - len(self.held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self.buffer += data
        if len(self.buffer) - self.at > self.most and self._end() < 0:
            raise RemoteFailed(f"{self.where}: an item of its stream has more than {self.most} bytes")

    def _end(self) -> int:
        return self.buffer.find(b"\n\n" if self.events else b"\n", self.at)

    def waits(self) -> bool:
        """Whether a whole item is there."""
        return self._end() >= 0

    def take(self, most: int) -> list[Any]:
        """Up to `most` items. Raises what the remote said went wrong, or that an item cannot be read."""
        found: list[Any] = []
        while len(found) < most and not self.over:
            end = self._end()
            if end < 0:
                break
            start, piece = self.at, bytes(self.buffer[self.at : end])
            self.at = end + 1 + self.events
            try:
                if self.events:
                    self._event(piece, found)
                elif piece := piece.strip():
                    if piece.startswith(_LINE_ERROR):
                        raise self._failure(piece)
                    found.append(self.wire.item(piece))
            except PenstockError:
                if not found:
                    raise
                self.at = start  # those before it count, and it is read again
                break
        if self.at == len(self.buffer):
            self.buffer.clear()
            self.at = 0
        return found

    def rest(self) -> None:
        """The body has ended: what is left is one more item, or nothing."""
        if not self.over and self.buffer[self.at :].strip():
            self.buffer += b"\n\n"

    def end(self) -> BaseException | None:
        """Why the answer is not complete, now that no more of it will come; None if it is."""
        return None

    def _event(self, piece: bytes, found: list[Any]) -> None:
        kind, data = b"", []
        for text in piece.split(b"\n"):
            name, _, value = text.partition(b":")
            if name == b"event":
                kind = value.strip()
            elif name == b"data":
                data.append(value.removeprefix(b" "))
        whole = b"\n".join(data)
        if kind == b"end" or whole == b"[DONE]":  # ours, and OpenAI's
            self.over = True
        elif kind == b"error":
            raise self._failure(whole)
        elif data:
            found.append(self.wire.item(whole))

    def _failure(self, data: bytes) -> PenstockError:
        try:
            told = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            told = {"detail": line(data[:200].decode("utf-8", "replace"))}
        if isinstance(told, dict) and not self.events:
            told = told["error"]
        if not isinstance(told, dict):
            told = {}
        status = told.get("status")
        return problem_error(told, status if isinstance(status, int) else 500, str(told.get("detail", "")), None, self.where)
