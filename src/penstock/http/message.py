"""What passes between the handler and the two adapters: a request in, an answer out.

An answer is either a `Response`, whole, or a `Streamed`: something that writes itself to an `Out`. The handler gives
one at once where it can (then no task is made), or a coroutine that ends in one. Heads are ready-made bytes, because
a response is rendered once per request and a list of pairs would be built only to be joined; ASGI asks for the pairs.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeAlias

import msgspec

pairs: Callable[[bytes], list[tuple[bytes, bytes]]] = re.compile(rb"([^:]+): (.*)\r\n").findall  # of a head: names, values


class Request(msgspec.Struct, eq=False, gc=False):
    """One request, its body complete. Header names are lower case; repeated headers are joined as RFC 9110 5.3 says."""

    method: str
    path: str
    query: bytes = b""
    headers: dict[bytes, bytes] = {}
    body: bytes = b""
    keep_alive: bool = True
    http10: bool = False
    raw_path: bytes = b""
    client: tuple[str, int] | None = None
    waited: float = 0.0  # seconds in which it lay unread, as far as they are known
    root: str = ""  # what clients put before the path, where the app is mounted elsewhere; fit for a URL


class Response:
    """A whole answer. `head` is header lines, each ended by CRLF; length, date and connection are the adapter's."""

    __slots__ = ("_head", "body", "status")

    def __init__(self, status: int, head: bytes = b"", body: bytes = b"") -> None:
        self.status = status
        self._head = head
        self.body = body

    @property
    def head(self) -> bytes:
        return self._head

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """The head as ASGI wants it, for the adapter to add to."""
        return pairs(self._head)


class Disconnected(ConnectionResetError):
    """The client has gone; nothing can be written to it."""


class Out(Protocol):
    """Where a streamed answer is written. Each method gives None, or what to await before the next one.

    Writing to a client that has gone raises `Disconnected`. `bodiless` says that only the head is wanted (HEAD).
    `sized` says that `head` has the content-length.
    """

    bodiless: bool

    def start(self, status: int, head: bytes, data: bytes = b"", *, sized: bool = False) -> Awaitable[None] | None: ...

    def write(self, data: bytes) -> Awaitable[None] | None: ...

    def end(self, data: bytes = b"") -> Awaitable[None] | None: ...


class Streamed(Protocol):
    """An answer that writes itself: `start`, any number of `write`, `end`."""

    async def run(self, out: Out) -> None: ...


Answer: TypeAlias = Response | Streamed
Handler: TypeAlias = Callable[[Request], Answer | Coroutine[Any, Any, Answer]]
