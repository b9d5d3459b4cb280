"""Heads that have been read before.

A client that keeps its connection sends the same head again and again, byte for byte. What llhttp made of one that stood
at the beginning of a message holds for every time, and finding it costs a tenth of parsing it. Nothing is known here
that was not read in full, by the strict parser, under the limits.
"""

from __future__ import annotations

from penstock.http.message import Request

_LONGEST = 2048  # bytes of a head that is remembered
_MOST = 1024  # heads; where every head differs (a trace in each), this is all that it costs


class Heads:
    """What is known of the latest heads, over all connections of a server. `head` is without its empty line."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, Request]] = {}

    def learn(self, head: bytes, request: Request) -> None:
        """This request was read of this head and of the bytes of its body alone."""
        if len(head) <= _LONGEST:
            if len(self._known) >= _MOST:
                self._known.clear()
            r = request
            blank = Request(r.method, r.path, r.query, r.headers, b"", True, r.http10, r.raw_path)
            self._known[head] = (len(request.body), blank)

    def again(self, head: bytes, body: bytes, client: tuple[str, int] | None) -> Request | None:
        """The request of this head and this body, if the head is known and asks for a body of this length."""
        known = self._known.get(head)
        if known is None or known[0] != len(body):
            return None
        r = known[1]
        return Request(r.method, r.path, r.query, r.headers, body, True, r.http10, r.raw_path, client)
