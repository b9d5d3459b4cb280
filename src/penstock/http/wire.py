"""Rendering: status lines, the Date header, whole answers and chunks, as bytes."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

STATUS_LINES: dict[int, bytes] = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, phrase.encode())
    for status, phrase in (dict.fromkeys(range(200, 600), "Unknown") | {s.value: s.phrase for s in HTTPStatus}).items()
    if status >= 200
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CLOSE = b"connection: close\r\n"
KEEP_ALIVE = b"connection: keep-alive\r\n"  # HTTP/1.0 clients asked for it and wait for the word
CHUNKED = b"transfer-encoding: chunked\r\n"

# Statuses that never have a body, nor a length (RFC 9110 6.4.1, 8.6).
BODILESS = frozenset({204, 304})


def date_line(unix: float) -> bytes:
    return b"date: %b\r\n" % formatdate(unix, usegmt=True).encode()


def connection_line(keep_alive: bool, http10: bool) -> bytes:
    """What the client does not know already: HTTP/1.1 keeps alive unless told, HTTP/1.0 closes unless told."""
    if not keep_alive:
        return CLOSE
    return KEEP_ALIVE if http10 else b""
