"""The abuse list, without sockets: every request whole and byte by byte gives the same requests and the same fault."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.http.heads import Heads
from penstock.http.limits import Limits
from penstock.http.message import Request
from penstock.http.reader import Bodies, Reader

LIMITS = Limits(body=1000, head=4096, headers=20, target=1000, pipeline=4)
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(data: bytes, step: int = 0, limits: Limits = LIMITS) -> tuple[list[Request], Reader]:
    """What is read of this, and the same again where every head that can be known is known."""
    heads = Heads()
    fresh, again = _read(data, step, limits, heads), _read(data, step, limits, heads)
    assert _seen(*fresh) == _seen(*again)
    return again


def _seen(requests: list[Request], reader: Reader) -> object:
    fault = None if reader.fault is None else (reader.fault.code, str(reader.fault))
    fields = [[getattr(request, name) for name in Request.__slots__] for request in requests]
    return fields, fault, reader.ended, reader.phase, reader.received, reader.bodies.held, reader.expects


def _read(data: bytes, step: int, limits: Limits, heads: Heads) -> tuple[list[Request], Reader]:
    reader = Reader(limits, Bodies(limits.bodies), heads)
    requests: list[Request] = []
    pieces = [data[i : i + step] for i in range(0, len(data), step)] if step else [data]
    for piece in pieces:
        while piece:
            piece = reader.feed(piece)
            requests += reader.ready
            reader.ready.clear()
    return requests, reader


def head(*lines: bytes, first: bytes = b"POST / HTTP/1.1") -> bytes:
    return b"\r\n".join((first, *lines)) + b"\r\n\r\n"


REFUSED = {
    "both lengths": (400, head(b"Host: a", b"Content-Length: 3", b"Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    "both lengths, reversed": (
        400,
        head(b"Host: a", b"Transfer-Encoding: chunked", b"Content-Length: 3") + b"0\r\n\r\n",
    ),
    "length twice": (400, head(b"Host: a", b"Content-Length: 3", b"Content-Length: 3") + b"abc"),
    "length list": (400, head(b"Host: a", b"Content-Length: 3, 3") + b"abc"),
    "length with a sign": (400, head(b"Host: a", b"Content-Length: +3") + b"abc"),
    "length below zero": (400, head(b"Host: a", b"Content-Length: -3") + b"abc"),
    "length that overflows": (400, head(b"Host: a", b"Content-Length: 99999999999999999999999")),
    "length above the limit": (413, head(b"Host: a", b"Content-Length: 1001")),
    "coding unknown": (501, head(b"Host: a", b"Transfer-Encoding: gzip") + b"abc"),
    "coding before chunked": (501, head(b"Host: a", b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"),
    "coding after chunked": (400, head(b"Host: a", b"Transfer-Encoding: chunked, gzip") + b"0\r\n\r\n"),
    "coding twice": (
        400,
        head(b"Host: a", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    ),
    "coding misspelt": (501, head(b"Host: a", b"Transfer-Encoding: xchunked") + b"0\r\n\r\n"),
    "coding identity": (501, head(b"Host: a", b"Transfer-Encoding: identity") + b"abc"),
    "coding in 1.0": (400, head(b"Host: a", b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0") + b"0\r\n\r\n"),
    "space before the colon": (400, head(b"Host: a", b"Transfer-Encoding : chunked") + b"0\r\n\r\n"),
    "chunk size no number": (400, CHUNKED + b"xyz\r\n\r\n"),
    "chunk size with a sign": (400, CHUNKED + b"-1\r\n\r\n"),
    "chunk size with 0x": (400, CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk size that overflows": (400, CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "chunk ended by LF": (400, CHUNKED + b"3\nabc\n0\n\n"),
    "chunk size with a space": (400, CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n"),
    "chunk longer than said": (400, CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n"),
    "chunk extension with LF": (400, CHUNKED + b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
    "chunks above the limit": (413, CHUNKED + b"3e8\r\n" + b"a" * 1000 + b"\r\n1\r\na\r\n0\r\n\r\n"),
    "chunk extension without end": (431, CHUNKED + b"1;" + b"a" * 20000),
    "trailers without end": (431, CHUNKED + b"0\r\nx: " + b"a" * 20000),
    "trailers without number": (431, CHUNKED + b"0\r\n" + b"x: a\r\n" * 30 + b"\r\n"),
    "length in trailers": (400, CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n"),
    "folded line": (400, head(b"Host: a", b"X: a", b" b")),
    "space before the first field": (400, head(b" Host: a")),
    "NUL in a value": (400, head(b"Host: a", b"X: a\0b")),
    "NUL in a name": (400, head(b"Host: a", b"X\0: b")),
    "NUL in the target": (400, head(b"Host: a", first=b"GET /\0 HTTP/1.1")),
    "NUL in the target, encoded": (400, head(b"Host: a", first=b"GET /%00 HTTP/1.1")),
    "control character": (400, head(b"Host: a", b"X: a\x01b")),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare LF in a header": (400, b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
    "bare CR in a header": (400, b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"),
    "space in a name": (400, head(b"Host: a", b"X Y: b")),
    "no name": (400, head(b"Host: a", b": b")),
    "no colon": (400, head(b"Host: a", b"abc")),
    "no Host": (400, head()),
    "Host twice": (400, head(b"Host: a", b"Host: b")),
    "target not ASCII": (400, head(b"Host: a", first=b"GET /\xff HTTP/1.1")),
    "target not UTF-8": (400, head(b"Host: a", first=b"GET /%ff HTTP/1.1")),
    "target with a space": (400, head(b"Host: a", first=b"GET /a b HTTP/1.1")),
    "target with a fragment": (400, head(b"Host: a", first=b"GET /a#b HTTP/1.1")),
    "target with a fragment in the query": (400, head(b"Host: a", first=b"GET /a?b#c HTTP/1.1")),
    "target relative": (400, head(b"Host: a", first=b"GET a HTTP/1.1")),
    "target of another scheme": (400, head(b"Host: a", first=b"GET ftp://a/b HTTP/1.1")),
    "target too long": (414, head(b"Host: a", first=b"GET /" + b"a" * 1000 + b" HTTP/1.1")),
    "head too long": (431, head(b"Host: a", *(b"X%d: " % i + b"a" * 1000 for i in range(12)))),
    "field too long": (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20000),
    "too many fields": (431, head(b"Host: a", *(b"X%d: a" % i for i in range(20)))),
    "too many of one field": (431, head(b"Host: a", *(b"X: a" for _ in range(30)))),
    "proxy": (501, head(b"Host: a", first=b"CONNECT a:80 HTTP/1.1") + b"foo"),
    "WebSocket": (501, head(b"Host: a", b"Connection: Upgrade", b"Upgrade: websocket", first=b"GET / HTTP/1.1")),
    "expectation unknown": (417, head(b"Host: a", b"Expect: wonders", b"Content-Length: 3")),
    "HTTP/0.9": (505, b"GET /\r\n\r\n"),
    "HTTP/2.0": (505, b"GET / HTTP/2.0\r\n\r\n"),
    "HTTP/2 preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (400, head(b"Host: a", first=b"GET / HTTP/1.2")),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "method unknown": (400, head(b"Host: a", first=b"FOO / HTTP/1.1")),
    "method in lower case": (400, head(b"Host: a", first=b"get / HTTP/1.1")),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_refused(name: str, step: int) -> None:
    status, data = REFUSED[name]
    requests, reader = read(data, step)
    assert requests == []
    assert reader.fault is not None
    assert reader.fault.code == status, reader.fault
    assert reader.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == b""
    assert not reader.ready


@pytest.mark.parametrize("name", REFUSED)
def test_what_came_before_is_still_answered(name: str) -> None:
    _, data = REFUSED[name]
    requests, reader = read(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n" + data)
    assert [request.path for request in requests] == ["/first"]
    assert reader.fault is not None


ACCEPTED = {
    "plain": (head(b"Host: a", first=b"GET /a?b=c HTTP/1.1"), ("GET", "/a", b"b=c", b"")),
    "body": (head(b"Host: a", b"Content-Length: 3") + b"abc", ("POST", "/", b"", b"abc")),
    "chunks": (CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-T: 1\r\n\r\n", ("POST", "/", b"", b"abcde")),
    "coding in capitals": (
        head(b"Host: a", b"Transfer-Encoding:\tCHUNKED ") + b"1\r\na\r\n0\r\n\r\n",
        ("POST", "/", b"", b"a"),
    ),
    "empty lines before": (b"\r\n\r\n" + head(b"Host: a", first=b"GET / HTTP/1.1"), ("GET", "/", b"", b"")),
    "absolute form": (head(b"Host: a", first=b"GET http://h:80/a?b HTTP/1.1"), ("GET", "/a", b"b", b"")),
    "absolute form without path": (head(b"Host: a", first=b"GET HTTP://h?b HTTP/1.1"), ("GET", "/", b"b", b"")),
    "asterisk": (head(b"Host: a", first=b"OPTIONS * HTTP/1.1"), ("OPTIONS", "*", b"", b"")),
    "percent-encoded": (head(b"Host: a", first=b"GET /%C3%A9%2f?%zz HTTP/1.1"), ("GET", "/é/", b"%zz", b"")),
    "offer of another protocol": (
        head(b"Host: a", b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 3") + b"abc",
        ("POST", "/", b"", b"abc"),
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_accepted(name: str, step: int) -> None:
    data, expected = ACCEPTED[name]
    (request,), reader = read(data, step)
    assert (request.method, request.path, request.query, request.body) == expected
    assert reader.fault is None
    assert reader.bodies.held == 0


def test_an_offer_of_another_protocol_ends_nothing() -> None:
    offer = head(b"Host: a", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", first=b"GET /a HTTP/1.1")
    requests, reader = read(offer * 500 + head(b"Host: a", first=b"GET /b HTTP/1.1"))
    assert [request.path for request in requests] == ["/a"] * 500 + ["/b"]
    assert not reader.ended
    requests, reader = read(offer.replace(b"Upgrade, ", b"Upgrade, close, ") * 2)
    assert len(requests) == 1
    assert reader.ended


def test_headers() -> None:
    data = head(b"HOST: a", b"Accept: x", b"accept: y", b"Cookie: a=1", b"Cookie: b=2", b"X: \xff", first=b"GET / HTTP/1.1")
    (request,), _ = read(data)
    assert request.headers == {b"host": b"a", b"accept": b"x, y", b"cookie": b"a=1; b=2", b"x": b"\xff"}


@pytest.mark.parametrize(
    ("first", "connection", "keep_alive", "http10"),
    [
        (b"GET / HTTP/1.1", b"", True, False),
        (b"GET / HTTP/1.1", b"close", False, False),
        (b"GET / HTTP/1.1", b"keep-alive", True, False),
        (b"GET / HTTP/1.0", b"", False, True),
        (b"GET / HTTP/1.0", b"keep-alive", True, True),
    ],
)
def test_keep_alive(first: bytes, connection: bytes, keep_alive: bool, http10: bool) -> None:
    lines = (b"Host: a", b"Connection: " + connection) if connection else (b"Host: a",)
    (request, *more), reader = read(head(*lines, first=first) * 2)
    assert (request.keep_alive, request.http10) == (keep_alive, http10)
    assert len(more) == keep_alive
    assert reader.ended is not keep_alive
    assert reader.fault is None  # what follows `Connection: close` is not even looked at


def test_expect() -> None:
    data = head(b"Host: a", b"Expect: 100-Continue", b"Content-Length: 3")
    _, reader = read(data)
    assert reader.expects
    reader.feed(b"abc")
    assert not reader.expects
    assert reader.ready[0].body == b"abc"
    _, old = read(data.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert not old.expects


def test_reads_ahead_no_further_than_asked() -> None:
    limits = Limits(head=64, pipeline=4)
    reader = Reader(limits, Bodies(1000), Heads())
    one = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    left = reader.feed(one * 100)
    assert 4 <= len(reader.ready) <= 4 + 64 // len(one) + 1
    count = len(reader.ready)
    while left:
        reader.ready.clear()
        left = reader.feed(left)
        count += len(reader.ready)
    assert count == 100


def test_bodies_of_all_connections_are_bounded() -> None:
    bodies = Bodies(1500)
    first, second = Reader(LIMITS, bodies, Heads()), Reader(LIMITS, bodies, Heads())
    first.feed(head(b"Host: a", b"Content-Length: 1000") + b"a" * 900)
    second.feed(head(b"Host: a", b"Content-Length: 1000") + b"a" * 700)
    assert second.fault is not None
    assert second.fault.code == 503
    assert second.fault.retry_after
    second.close()
    assert bodies.held == 900
    first.feed(b"a" * 100)
    assert first.ready[0].body == b"a" * 1000
    assert bodies.held == 0


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes(data: bytes, step: int) -> None:
    whole, reader = read(b"POST / HTTP/1.1\r\nHost: a\r\n" + data)
    pieces, other = read(b"POST / HTTP/1.1\r\nHost: a\r\n" + data, step)
    assert [request.body for request in whole] == [request.body for request in pieces]
    assert (reader.fault is None) == (other.fault is None)
    reader.close()
    other.close()
    assert reader.bodies.held == other.bodies.held == 0


PIECES = (
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
    b"POST /b HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
    b"GET /c?d=e HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /f HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /g HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"POST /h HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /i HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    b"GET /j HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"abc",
    b"\r\n\r\n",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"PO",
    b"ab",
)


@given(st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map(b"".join), max_size=12))
def test_known_heads_change_nothing(reads: list[bytes]) -> None:
    """However messages are cut into reads: a connection of a server that knows all their heads reads what a new one does."""
    heads = Heads()
    for head_of_one in PIECES[:8]:
        for body in (b"", b"abc"):
            _read(head_of_one + body, 0, LIMITS, heads)
    warm, cold = Reader(LIMITS, Bodies(1000), heads), Reader(LIMITS, Bodies(1000), Heads())
    cold._whole = False
    for data in reads:
        seen = []
        for reader in (warm, cold):
            assert not reader.feed(data)
            seen.append(_seen(list(reader.ready), reader))
            reader.ready.clear()
        assert seen[0] == seen[1]
