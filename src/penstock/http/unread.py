"""Clients that are gone before their connection is accepted.

A server that is behind would read, queue and refuse for them, and so stay behind: every caller leaves, each next one
needs a connection again, and accepting and reading those is all that there is time for. The kernel knows who has gone,
and leaving them out costs less than the connection did.
"""

from __future__ import annotations

import asyncio
import socket
import sys

# Of the kernel's struct tcp_info (linux/tcp.h); times are in ms.
_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_STATE, _LAST_DATA_RECEIVED, _SIZE = 0, slice(52, 56), 56
_CLOSED, _CLOSE_WAIT = 7, 8
_BEHIND = 50


def left_unread(transport: asyncio.BaseTransport) -> bool:
    """Whether the client of this new connection has ended it, and what it sent has lain unread for a while.

    One that ends its sending side only, as `nc -N` does, is thus answered as long as the server is not behind.
    """
    if _INFO is None:
        return False
    try:
        info: bytes = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, _INFO, _SIZE)
    except OSError:  # a unix socket
        return False
    if info[_STATE] == _CLOSE_WAIT:
        return int.from_bytes(info[_LAST_DATA_RECEIVED], sys.byteorder) >= _BEHIND
    return info[_STATE] == _CLOSED
