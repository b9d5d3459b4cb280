"""Bytes in, requests out: HTTP/1.x read by llhttp (httptools) in its strict mode. No I/O, no clock.

llhttp refuses what smuggling is made of: both lengths, repeated or odd lengths, bad chunks, folded lines, bare CR or
LF, control characters. What it lets pass and we refuse is here: other transfer codings, HTTP/1.0 with any, versions
that are not 1.x, a missing or repeated Host, paths that are not UTF-8, and whatever is above a limit.

A fault ends the connection: requests read before it are still answered, in order, and the fault last.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import httptools

from penstock.http.heads import Heads
from penstock.http.limits import Limits
from penstock.http.message import Request
from penstock.http.problems import Fault
from penstock.http.target import short_target, target

IDLE, HEAD, BODY = 0, 1, 2


class Bodies:
    """Bytes of all bodies that are being received, over all connections of a server."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.held = 0
        self.limit = limit


class Reader:
    """Feed it bytes; take requests from `ready`; when `fault` is set nothing more will come."""

    __slots__ = (
        "_body",
        "_declined",
        "_extra",
        "_fed",
        "_headers",
        "_heads",
        "_limits",
        "_parser",
        "_pieces",
        "_turned",
        "_url",
        "_whole",
        "bodies",
        "client",
        "ended",
        "expects",
        "fault",
        "phase",
        "ready",
        "received",
    )

    def __init__(self, limits: Limits, bodies: Bodies, heads: Heads) -> None:
        self.ready: deque[Request] = deque()
        self.fault: Fault | None = None
        self.ended = False
        """No more requests will come: one said so, or there is a fault."""
        self.phase = IDLE
        self.received = 0
        """Bytes of the body that is being received."""
        self.expects = False
        """The client waits for `100 Continue` before it sends the body that is being received."""
        self.bodies = bodies
        self.client: tuple[str, int] | None = None
        self._limits = limits
        self._heads = heads
        self._whole = True  # so far each read has been one message, neither more nor less: the parser is between messages
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = b""
        self._pieces: bytearray | None = None
        self._fed = 0
        self._extra = 0
        self._turned = False
        self._declined = b""
        self._parser: Any = httptools.HttpRequestParser(self)

    @property
    def headers(self) -> dict[bytes, bytes]:
        """What is known so far of the head that is being read."""
        return self._headers

    def feed(self, data: bytes) -> bytes:
        """Parse; give back what was not parsed because enough requests are `ready`."""
        size = self._limits.head
        if len(data) <= size:
            if self._whole:
                self._feed_whole(data)
            else:
                self._feed(data)
            return b""
        self._whole = False
        view = memoryview(data)
        for at in range(0, len(data), size):
            if self.ended:
                return b""
            if len(self.ready) >= self._limits.pipeline:
                return data[at:]
            self._feed(view[at : at + size])
        return b""

    def close(self) -> None:
        """Drop what was being received. The parser and we hold each other; only the collector would end that."""
        self.bodies.held -= self.received
        self.received = 0
        self.ended = True
        self._parser = None

    def _feed_whole(self, data: bytes) -> None:
        """Look for a head that is known; else parse, and see whether it was one message again."""
        head, _, body = data.partition(b"\r\n\r\n")
        request = self._heads.again(head, body, self.client)
        if request is not None and self.bodies.held + len(body) <= self.bodies.limit:
            self.ready.append(request)
            return
        self._feed(data)
        self._whole = self._turned and self.phase == IDLE and not self.ended and len(self.ready[-1].body) == len(body)
        if self._whole:
            self._heads.learn(head, self.ready[-1])

    def _feed(self, data: bytes | memoryview) -> None:
        if self.ended:
            return
        self._turned = False
        size = len(data)
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._fail(cause if isinstance(cause, Fault) else Fault(400, "The request cannot be parsed."))
        except httptools.HttpParserError as error:
            self._fail(Fault(400, f"The request is not valid HTTP/1.1: {error}."))
        if self.phase and not self.ended:
            self._account(size)

    def _parse(self, data: bytes | memoryview) -> bytes:
        """Another protocol may be offered (h2c, as Java's client does with every first request), and may be ignored.
        But llhttp stops there, before the body: a new parser is to read what is returned, without the offer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            if self._declined:
                data, self._declined = self._declined + bytes(data[stop.args[0] :]), b""
                self._parser = httptools.HttpRequestParser(self)
                return data
            self.ended = True
        return b""

    def _account(self, size: int) -> None:
        """A message that came in one read is never here. Of the others, bound what is no body: heads, chunk framing,
        trailers; the parser holds an unfinished field however long it is."""
        self._fed = 0 if self._turned else self._fed + size
        if self._fed >= self._limits.head * self.phase + 16 * self.received:
            what = "header section" if self.phase == HEAD else "framing of the body"
            self._fail(Fault(431, f"The {what} is longer than {self._limits.head} bytes."))

    def _fail(self, fault: Fault) -> None:
        if not self.ended:
            self.fault = fault
            self.ended = True

    # Called by the parser.

    def on_url(self, url: bytes) -> None:
        if self.ended:
            return
        self.phase = HEAD
        self._url += url
        if len(self._url) > self._limits.target:
            raise Fault(414, f"The request target is longer than {self._limits.target} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        headers = self._headers
        if self.phase == BODY:
            self._trailer()
        elif name in headers:
            if name == b"host":
                raise Fault(400, "The Host header is repeated.")
            headers[name] += (b"; " if name == b"cookie" else b", ") + value
            self._trailer()
        else:
            headers[name] = value

    def on_headers_complete(self) -> None:
        headers = self._headers
        limits = self._limits
        self._fed = 0
        if self.ended:
            return
        self.phase = BODY
        if len(headers) > limits.headers:
            raise Fault(431, f"There are more than {limits.headers} header fields.")
        if b"content-length" in headers:
            self._announced(int(headers[b"content-length"]))
        elif b"transfer-encoding" in headers:
            self._coding(headers[b"transfer-encoding"].strip().lower())
        else:
            return
        if b"expect" in headers:
            if headers[b"expect"].strip().lower() != b"100-continue":
                raise Fault(417, "The only expectation that can be met is 100-continue.")
            self.expects = self._parser.get_http_version() == "1.1"

    def on_body(self, data: bytes) -> None:
        if self.ended:
            return
        size = len(data)
        bodies = self.bodies
        self.received += size
        bodies.held += size
        if self.received > self._limits.body:
            raise self._too_large()
        if bodies.held > bodies.limit:
            raise Fault(503, "The server is receiving as much as it can hold.", retry_after=1.0)
        if self._pieces is not None:
            self._pieces += data
        elif self._body:
            self._pieces = bytearray(self._body)
            self._pieces += data
            self._body = b""
        else:
            self._body = data

    def on_message_complete(self) -> None:
        if self.ended:  # after `Connection: close` llhttp itself refuses more; after an upgrade nothing is HTTP
            return
        parser, headers, url, body = self._parser, self._headers, self._url, self._body
        if self._pieces is not None:
            body = bytes(self._pieces)
            self._pieces = None
        self.bodies.held -= self.received
        self.received = 0
        self.phase = IDLE
        self.expects = False
        self._turned = True
        self._extra = 0
        self._url = self._body = b""
        self._headers = {}
        keep_alive = parser.should_keep_alive()
        method = parser.get_method().decode()
        http10 = False
        if not keep_alive or b"connection" in headers or b"host" not in headers:
            http10 = self._version(headers)
            if parser.should_upgrade() and method != "CONNECT":
                self._declined = _without_offer(method, url, headers)
                return
        text, query, path = short_target(url, method) if len(url) < 256 else target(url, method)
        self.ready.append(Request(method, text, query, headers, body, keep_alive, http10, path, self.client))
        self.ended = not keep_alive

    # The rare cases.

    def _trailer(self) -> None:
        """Trailers and repeated headers are counted apart: neither adds a key, so the count of keys is not theirs."""
        self._extra += 1
        if self._extra > self._limits.headers:
            raise Fault(431, f"There are more than {self._limits.headers} header fields.")

    def _announced(self, length: int) -> None:
        if length > self._limits.body:
            raise self._too_large()

    def _too_large(self) -> Fault:
        return Fault(413, f"The body is larger than the limit of {self._limits.body} bytes.")

    def _coding(self, coding: bytes) -> None:
        if coding != b"chunked":
            raise Fault(501, "The only transfer coding that is read is chunked.")
        if self._parser.get_http_version() != "1.1":
            raise Fault(400, "Transfer codings need HTTP/1.1.")

    def _version(self, headers: dict[bytes, bytes]) -> bool:
        version: str = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Fault(505, f"HTTP/{version} is not spoken here; HTTP/1.1 is.")
        if version == "1.1" and b"host" not in headers:
            raise Fault(400, "HTTP/1.1 needs a Host header.")
        if headers.get(b"upgrade", b"").lower() == b"websocket":
            raise Fault(501, "This server speaks HTTP/1.1 only; it has no WebSockets.")
        return version == "1.0"


def _without_offer(method: str, url: bytes, headers: dict[bytes, bytes]) -> bytes:
    close = b"close" in headers[b"connection"].lower()
    lines = [b"%b: %b\r\n" % pair for pair in headers.items() if pair[0] not in (b"connection", b"upgrade")]
    line = b"connection: close\r\n" if close else b""
    return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method.encode(), url, b"".join(lines), line)
