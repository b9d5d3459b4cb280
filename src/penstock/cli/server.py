"""The servers that commands ask: their URLs, and connections to them."""

from __future__ import annotations

import http.client
from urllib.parse import SplitResult, urlsplit

from penstock.cli import CommandFailed

SERVER = "a server's URL; http://host:port is"
SERVICE = "a URL that can be called; http://host:port/service is"
_KINDS: dict[str, type[http.client.HTTPConnection]] = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


def address(url: str, form: str) -> SplitResult:
    """The parts of a URL that can be called; else CommandFailed says what it should look like: `form`."""
    try:
        parts = urlsplit(url)
        if parts.scheme in _KINDS and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # brackets without an end, or a port above 65535
        pass
    raise CommandFailed(f"{url!r} is not {form}")


def connection(parts: SplitResult, timeout: float | None = None) -> http.client.HTTPConnection:
    """A connection that is made when something is sent; `timeout` in seconds."""
    return _KINDS[parts.scheme](parts.hostname or "", parts.port, timeout=timeout)
