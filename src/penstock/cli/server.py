"""The servers that commands ask: their URLs, and connections to them."""

from __future__ import annotations

import argparse
import http.client
import os
from string import punctuation
from urllib.parse import SplitResult, quote, urlsplit

from penstock.cli import CommandFailed

SERVER = "a server's URL; http://host:port is"
SERVICE = "a URL that can be called; http://host:port/service is"
_KINDS: dict[str, type[http.client.HTTPConnection]] = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


def address(url: str, form: str) -> SplitResult:
    """The parts of a URL that can be called; else CommandFailed says what it should look like: `form`."""
    try:
        parts = urlsplit(quote(url, safe=punctuation))
        if parts.scheme in _KINDS and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # brackets without an end, or a port above 65535
        pass
    raise CommandFailed(f"{url!r} is not {form}")


def token_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """`--token`, or the environment's; without the line end of the file that it may be from."""
    given = os.environ.get("PENSTOCK_TOKEN", "")
    parser.add_argument("--token", type=str.strip, default=given, help=f"{what} (default: $PENSTOCK_TOKEN)")


def connection(parts: SplitResult, timeout: float | None = None) -> http.client.HTTPConnection:
    """A connection that is made when something is sent; `timeout` in seconds."""
    return _KINDS[parts.scheme](parts.hostname or "", parts.port, timeout=timeout)
