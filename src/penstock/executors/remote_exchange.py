"""One call of a remote service: what was sent, and what has come of the answer so far.

A stream's items go to the reader as far as its buffer reaches. The rest waits undecoded, and while any of it does the
connection is not read, so that the remote's own stream stands still, as if its reader were here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.codec import media_type
from penstock.errors import PenstockError, RemoteFailed
from penstock.executors.remote_client import Connection, Server
from penstock.executors.remote_relay import Relay
from penstock.executors.remote_stream import STREAMS, Items

if TYPE_CHECKING:
    from penstock.executors.remote import RemoteExecutor


class Rest:
    """What an answer holds after the end of its stream: read and forgotten. If it is little, the connection is kept."""

    __slots__ = ("connection", "data", "left", "timer")

    def __init__(self, connection: Connection, server: Server) -> None:
        self.data = b""
        self.left = 4096  # bytes
        self.connection: Connection | None = connection
        self.timer = server.loop.call_later(1.0, server.drop, self)
        connection.exchange = self
        connection.stand_still(False)

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Was read before."""

    def body(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left < 0 and self.connection is not None:
            self.timer.cancel()
            self.connection.abort()

    def ended(self) -> None:
        self.timer.cancel()

    def lost(self, why: str, stale: bool, sent: bool = True) -> None:
        self.timer.cancel()


class Flow:
    """An `Exchange` that carries a work. `owner.ended` hears once how it went."""

    __slots__ = (
        "began", "chunks", "connection", "data", "headers", "index", "items", "media", "over", "owner", "paused", "room",
        "size", "status", "told", "work",
    )  # fmt: skip

    def __init__(self, owner: RemoteExecutor, work: Any, index: int, data: bytes, began: float) -> None:
        self.owner = owner
        self.work = work
        self.index = index  # of the remote
        self.data = data
        self.began = began
        self.connection: Connection | None = None
        self.status = self.size = 0
        self.media = ""
        self.headers: dict[bytes, bytes] = {}
        self.chunks: list[bytes] = []
        self.items: Items | None = None
        self.room = owner.buffer  # items that the reader's buffer still takes
        self.told = False  # the first item went to the reader
        self.paused = self.over = False

    @property
    def where(self) -> str:
        return self.owner.servers[self.index].address.url

    # What the connection says

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status = status
        self.media = headers.get(b"content-type", b"").decode("latin-1")
        self.headers = headers
        if self.owner.body.streams and 200 <= status < 300:
            try:
                self.items = self._items(media_type(self.media))
            except RemoteFailed as error:
                self.fail(error)

    def _items(self, media: str) -> Items:
        wire, most = self.owner.wire, self.owner.options.max_answer
        if isinstance(wire, Relay):
            return wire.items(media, most, self.where, self.work.requests)
        if media not in STREAMS:
            said = media or "nothing that says its type"
            raise RemoteFailed(f"{self.where} answered {said}, which is no stream that can be read")
        return Items(wire, media, most, self.where)

    def body(self, data: bytes) -> None:
        if self.items is not None:
            try:
                self.items.feed(data)
            except RemoteFailed as error:
                self.fail(error)
                return
            self.pump()
            return
        self.size += len(data)
        if self.size > self.owner.options.max_answer:
            self.fail(RemoteFailed(f"{self.where}: its answer has more than {self.owner.options.max_answer} bytes"))
        else:
            self.chunks.append(data)

    def ended(self) -> None:
        """The answer is complete."""
        self.connection = None
        if self.items is not None:
            self.over = True
            self.items.rest()
            self.pump()
            return
        body = b"".join(self.chunks) if len(self.chunks) != 1 else self.chunks[0]
        count = len(self.work.requests)
        if not 200 <= self.status < 300:
            self._done([self.owner.wire.error(self.status, body, self.headers, self.where)] * count)
            return
        try:
            results = self.owner.wire.answer(body, self.media, count)
        except RemoteFailed as error:
            results = [RemoteFailed(f"{self.where}: {error}")] * count
        self._done(results)

    def lost(self, why: str, stale: bool, sent: bool = True) -> None:
        """The connection ended before the answer did, or never was."""
        self.connection = None
        if stale and self.owner.safe:
            self.owner.servers[self.index].begin(self, fresh=True)  # it was closed while we wrote; nothing is known to be wrong
        else:
            error = RemoteFailed(f"{self.where}: {why}")
            error.begun = sent  # what a safe call sent before, on a connection that was closed, does not matter
            self._done([error] * len(self.work.requests))

    # Streams

    def take(self, count: int) -> None:
        """The reader took items."""
        self.room += count
        if self.items is not None and (self.paused or self.over) and self.room * 2 >= self.owner.buffer:
            self.pump()

    def pump(self) -> None:
        """Give the reader what fits, and read on or stand still."""
        items = self.items
        assert items is not None
        while self.room > 0 and items.waits() and not items.over:
            try:
                found = items.take(self.room)
            except PenstockError as error:
                self.fail(error)
                return
            self.room -= len(found)
            if found:
                self.owner.produced(self, found)
        if items.over or (self.over and not items.waits()):
            if not self.over:
                self._leave()
            self._done([items.end()])
        elif self.connection is not None:
            self.paused = items.waits()
            self.connection.stand_still(self.paused)

    def _leave(self) -> None:
        """The stream says that it is complete; the connection stays of use if the answer is too, soon."""
        connection, self.connection = self.connection, None
        if connection is not None:
            Rest(connection, self.owner.servers[self.index])

    # The end

    def fail(self, error: BaseException) -> None:
        """It cannot go on; the connection is of no use any more."""
        self.drop()
        self._done([error] * len(self.work.requests))

    def drop(self) -> None:
        """Close what carries this, so that the remote stops too."""
        self.owner.servers[self.index].drop(self)

    def _done(self, results: list[Any]) -> None:
        self.owner.ended(self, results)
