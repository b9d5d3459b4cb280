"""Everything that a client may make the server hold or wait for, in one place. Seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server and one connection may hold. The rates and times of a slow sender are Apache's (mod_reqtimeout).

    A head is refused at `head` to `2 * head` bytes: it is counted per read, and a read is fed in pieces of that
    size. Times are kept to within one `period`, by one sweep over all connections.
    """

    body: int = 16 << 20
    """Bytes of one body; more is answered 413, unread."""
    bodies: int = 1 << 30
    """Bytes of all bodies that are being received; a body that does not fit is answered 503."""
    head: int = 32 << 10
    headers: int = 100
    target: int = 8 << 10
    connections: int = 10_000
    pipeline: int = 16
    """Requests read ahead on one connection before reading stops."""
    head_timeout: float = 20.0
    body_timeout: float = 20.0
    body_rate: float = 500.0
    """Bytes a second: a body may take `body_timeout + received / body_rate` seconds from the request's first byte."""
    idle_timeout: float = 75.0
    stall_timeout: float = 30.0
    stall_rate: float = 500.0
    """Bytes a second: a reader that takes less than this for `stall_timeout` seconds is cut off."""
    linger: float = 2.0
    """How long a refused sender is read and discarded, so that it sees the refusal and not a reset."""
    period: float = 1.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ConfigError(f"Limits({name}={getattr(self, name)!r}): must be above 0")
