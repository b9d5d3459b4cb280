"""The declaration of a service that runs on other servers."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from penstock.core.policy.breaker import Breaker
from penstock.core.policy.declared import number, whole
from penstock.errors import ConfigError


class Address(NamedTuple):
    """Where a remote is. `path` is empty where only a server was named, and so the service decides."""

    url: str
    host: str
    port: int
    secure: bool
    path: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Remote:
    """Run on other servers: each call is a POST to one of `urls`, chosen by the service's `route`.

    The service is declared by a function whose signature says what travels; it is never run, so `...` is body enough,
    and a return type such as `AsyncIterator[str]` makes it a stream. A URL without a path is another penstock server,
    and gets the service's name for a path; any other URL is called as it is. Arguments travel as a JSON object by name,
    `encoding="msgpack"` keeps bytes and arrays as they are, `"raw"` sends the one bytes parameter (the default where it
    is the only one). Streams are read as NDJSON or server-sent events, no further ahead than the service's `buffer`.
    `encoding="openai"` relays that protocol: the service is `relay(path: str, body: dict) -> AsyncIterator[dict]`, its path
    such as /v1/chat/completions, where the URL's own path takes the place of /v1; the body is sent as it is (None: a GET).
    The one object of an answer, or each of its events, is an item; a stream that breaks off is RemoteFailed.

    What is left of the deadline, priority, request id and trace go along, to penstock servers the tenant too; when the
    caller leaves, the connection is closed, which cancels the call there. Errors come back as the classes that they
    were there; what is the remote's own fault is RemoteFailed.

    `connections` bounds the calls that one remote runs at once; each is a replica with its lease. `breaker` takes out a
    remote that fails or is much slower than the others. `health` is a path that answers 2xx while all is well, asked
    every `interval` seconds (default for penstock servers: /readyz/ and the service's name; "" for none). A remote that
    comes back takes its share gradually, over `slow_start` seconds. With `safe=True` a failed call is run again on
    another remote, unless `retry=` says otherwise: up to three starts, for at most 10 % of all calls and 20 more. A call for
    which there was no connection has not begun: safe or not, it is tried on every other remote that takes work.

    `token` is sent as a bearer token, `headers` with every request, `tls` replaces the default context of https URLs.
    An answer may have `max_answer` bytes, and so may one item of a stream.
    """

    urls: str | Sequence[str]
    connections: int = 32
    breaker: Breaker = field(default_factory=Breaker)
    health: str | None = None
    interval: float = 2.0
    slow_start: float = 5.0
    encoding: Literal["json", "msgpack", "raw", "openai"] | None = None
    connect_timeout: float = 2.0
    token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: ssl.SSLContext | None = None
    max_answer: int = 64 << 20

    def __post_init__(self) -> None:
        urls = (self.urls,) if isinstance(self.urls, str) else tuple(self.urls)
        object.__setattr__(self, "urls", urls)
        if not urls or len(set(urls)) < len(urls):
            raise ConfigError(f"Remote({list(urls)!r}): at least one URL, each once")
        for url in urls:
            address(url)
        whole("Remote(connections=...)", self.connections)
        whole("Remote(max_answer=...)", self.max_answer)
        number("Remote(interval=...)", self.interval, "seconds", above=0)
        number("Remote(connect_timeout=...)", self.connect_timeout, "seconds", above=0)
        number("Remote(slow_start=...)", self.slow_start, "seconds", least=0)
        if self.encoding not in (None, "json", "msgpack", "raw", "openai"):
            raise ConfigError(f'Remote(encoding={self.encoding!r}): "json", "msgpack", "raw" or "openai"')
        if self.encoding == "openai" and not all(address(url).path for url in urls):
            raise ConfigError(f'Remote({list(urls)!r}, encoding="openai"): URLs with a path, such as http://host:8000/v1')
        if self.health and not _visible(self.health, "/"):
            raise ConfigError(f"Remote(health={self.health!r}): a path that begins with /")
        for name, value in (*self.headers.items(), ("token", self.token or "-")):
            if not _visible(name) or not _visible(value.replace(" ", "_")):
                raise ConfigError(f"Remote: the header {name!r} has characters that a header cannot have")

    @property
    def replicas(self) -> int:
        """Slots of all remotes."""
        return len(self.urls) * self.connections


def address(url: str) -> Address:
    """The parts of a URL that can be called; raises ConfigError for others."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"Remote({url!r}): {error}") from None
    if (
        not _visible(url)
        or parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username is not None
        or set(url) & set('"<>\\')
    ):
        raise ConfigError(f"Remote({url!r}): URLs such as http://host:8000 or https://host/path, without a user in them")
    secure = parts.scheme == "https"
    path = "" if parts.path in ("", "/") and not parts.query else (parts.path or "/")
    if parts.query:
        path += f"?{parts.query}"
    return Address(url.rstrip("/") if not path else url, parts.hostname, port or (443 if secure else 80), secure, path)


def _visible(text: str, start: str = "") -> bool:
    return text.startswith(start) and text.isascii() and text.isprintable() and " " not in text and text != ""
