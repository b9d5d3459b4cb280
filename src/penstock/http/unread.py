"""What a new connection has been through before it is accepted.

A server that is behind would read, queue and refuse for clients that are gone, and so stay behind: every caller leaves,
each next one needs a connection again, and accepting and reading those is all that there is time for. And who is still
there has waited longer than it seems, and will leave sooner. The kernel knows both.
"""

from __future__ import annotations

import asyncio
import socket
import sys

# Of the kernel's struct tcp_info (linux/tcp.h); times are in ms.
_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_STATE, _LAST_DATA_RECEIVED, _REPEATS, _BYTES_RECEIVED, _SIZE = 0, slice(52, 56), slice(100, 104), slice(128, 136), 136
_CLOSED, _CLOSE_WAIT = 7, 8
_BEHIND = 50


def unread(transport: asyncio.BaseTransport) -> float | None:
    """Seconds for which what this new client sent has waited to be read, at least; None if the client has left.

    One that ends its sending side only, as `nc -N` does, is thus answered as long as the server is not behind. For how
    long it would have waited it has not shown.
    """
    if _INFO is None:
        return 0.0
    try:
        info: bytes = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, _INFO, _SIZE)
    except OSError:  # a unix socket
        return 0.0
    lain = int.from_bytes(info[_LAST_DATA_RECEIVED], sys.byteorder)
    repeats = int.from_bytes(info[_REPEATS], sys.byteorder)
    if info[_STATE] == _CLOSE_WAIT:
        return None if repeats or lain >= _BEHIND else 0.0
    if info[_STATE] == _CLOSED:
        return None
    if not any(info[_BYTES_RECEIVED]):  # nothing came yet: it is the age of the connection
        return 0.0
    return lain / 1e3 + _repeating(repeats)


def _repeating(repeats: int) -> float:
    """Seconds in which the kernel sent its part of the handshake so many times again, at least: after 1, 2, 4, ... s.

    That is while more clients wait to be accepted than the listening socket keeps; the client's request is there long
    before. A repeated question gets a repeated answer too, so that on a network that loses some, two may be one.
    """
    return float(2 ** ((repeats + 1) // 2) - 1)
