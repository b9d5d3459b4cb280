"""The native server: listening sockets, the connections on them, the date, and a graceful end."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Sequence

from penstock.executors.lookout import Lookout, lookout
from penstock.http.connection import Connection
from penstock.http.heads import Heads
from penstock.http.limits import Limits
from penstock.http.message import Handler, Response
from penstock.http.problems import Fault, problem_response
from penstock.http.reader import Bodies
from penstock.http.sweep import Sweep
from penstock.http.wire import date_line
from penstock.http.writer import Writer

# Connections above the limit are told so, but no more of them at a time than this; the rest are dropped.
REFUSALS = 256


def _refused(error: Exception, headers: dict[bytes, bytes]) -> Response:
    return problem_response(error)


class CannotListen(OSError):
    """The address is in use, not ours to take, or none."""

    def __init__(self, where: str, error: OSError) -> None:
        super().__init__(error.errno, f"cannot listen on {where}: {error.strerror or error}")


class Server:
    """Serves `handler` until `stop`. One per event loop; the limits hold over all its sockets together.

    `refuse(error, headers)` gives the answer to what never reaches the handler, or fails in it.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        refuse: Callable[[Exception, dict[bytes, bytes]], Response] = _refused,
        limits: Limits | None = None,
        backlog: int = 4096,
    ) -> None:
        self.handler = handler
        self.refuse = refuse
        self.limits = limits or Limits()
        self.bodies = Bodies(self.limits.bodies)
        self.heads = Heads()
        self.sweep = Sweep(self.limits.period)
        self.stopping = False
        self.date = date_line(time.time())
        self.loop: asyncio.AbstractEventLoop
        self.lookout = Lookout()  # of no loop, until it starts
        self.connections: dict[Connection, None] = {}
        self.left = 0  # clients that had gone before they were accepted
        self._backlog = backlog
        self._unflushed: list[Writer] = []
        self._listeners: list[asyncio.Server] = []
        self._unix_path = ""
        self._emptied: asyncio.Event

    @property
    def port(self) -> int:
        """The TCP port, as chosen by the system when 0 was asked for; 0 on a unix socket alone."""
        for listener in self._listeners:
            for sock in listener.sockets:
                if sock.family != socket.AF_UNIX:
                    return int(sock.getsockname()[1])
        return 0

    @property
    def busy(self) -> bool:
        """Whether any request is being received or answered."""
        return any(not connection.idle for connection in self.connections)

    async def start(
        self, host: str = "127.0.0.1", port: int = 0, *, unix_path: str = "", bound: Sequence[socket.socket] | None = None
    ) -> None:
        """Listen on every address of `host`, and on a unix socket if its path is given (then `host` may be empty).

        With `bound`, sockets of `listening` that the server then owns, `host` and `port` are theirs.
        """
        self.loop = asyncio.get_running_loop()
        self.lookout = lookout(self.loop)
        self._emptied = asyncio.Event()
        self.sweep.members[self] = None
        self.sweep.start()
        for sock in listening(host, port) if bound is None else bound:
            for each in (sock, *(sock.dup() for _ in range(_acceptors(self.loop) - 1))):
                listener = await self.loop.create_server(lambda: Connection(self), sock=each, backlog=self._backlog)
                self._listeners.append(listener)
        if unix_path:
            try:
                _claim(unix_path)
                listener = await self.loop.create_unix_server(lambda: Connection(self), unix_path, backlog=self._backlog)
            except OSError as error:
                raise CannotListen(unix_path, error) from error
            self._listeners.append(listener)
            self._unix_path = unix_path

    async def stop(self, within: float = 10.0) -> None:
        """Accept no more; let what is in flight be answered `within` seconds; then cut the rest off."""
        self.stopping = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.stop()
        if self.connections:
            await self._until_empty(within)
        for connection in list(self.connections):
            connection.stop(now=True)
        if self.connections:
            await self._until_empty(1.0)
        self.sweep.stop()
        self._listeners.clear()
        if self._unix_path:
            _unlink_socket(self._unix_path)

    async def _until_empty(self, seconds: float) -> None:
        self._emptied.clear()
        try:
            await asyncio.wait_for(self._emptied.wait(), seconds)
        except TimeoutError:
            pass

    # Called by the sweep and by connections.

    def flush_soon(self, writer: Writer) -> None:
        if not self._unflushed:
            self.loop.call_soon(self._flush)
        self._unflushed.append(writer)

    def _flush(self) -> None:
        writers, self._unflushed = self._unflushed, []
        for writer in writers:
            writer.flush()

    def swept(self, tick: int) -> None:
        self.date = date_line(time.time())

    def opened(self, connection: Connection) -> Fault | None:
        count = len(self.connections)
        self.connections[connection] = self.sweep.members[connection] = None
        if self.stopping:
            return Fault(503, "The server is stopping.", retry_after=1.0)
        if count >= self.limits.connections + REFUSALS:
            connection.stop(now=True)
        elif count >= self.limits.connections:
            return Fault(503, f"There are {self.limits.connections} connections open already.", retry_after=1.0)
        return None

    def closed(self, connection: Connection) -> None:
        self.connections.pop(connection, None)
        self.sweep.members.pop(connection, None)
        if not self.connections:
            self._emptied.set()


def _acceptors(loop: asyncio.AbstractEventLoop) -> int:
    """How many handles share a listening socket: one where all who wait are accepted at once, as by asyncio.

    libuv accepts one connection a turn of the loop and handle, so that a thousand who come while streams run would
    wait for a thousand turns. Eight cost a lone connection 30 us, and save 64 concurrent ones 40 us each.
    """
    return 8 if type(loop).__module__.startswith("uvloop") else 1


def _unlink_socket(path: str) -> None:
    if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
        os.unlink(path)


def _claim(path: str) -> None:
    """Remove a socket that was left by a server that was killed; refuse one that is in use."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            pass  # its backlog is full
        except OSError:
            _unlink_socket(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def listening(host: str, port: int) -> list[socket.socket]:
    """Bound sockets, none if `host` is empty. Accepted ones inherit the keep-alive settings, by which half-open
    connections are found."""
    if not host:
        return []
    try:
        return _bound(host, port)
    except OSError as error:
        raise CannotListen(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", error) from error


def _bound(host: str, port: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    socks: list[socket.socket] = []
    for family, kind, proto, _, address in dict.fromkeys(found):
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind((address[0], port, *address[2:]))
        except OSError:
            sock.close()
            for other in socks:
                other.close()
            raise
        port = port or int(sock.getsockname()[1])  # one port over all addresses
        socks.append(sock)
    return socks
