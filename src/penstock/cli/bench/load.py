"""Load, open-loop and closed-loop, against one URL.

Closed: `clients` callers, each of whom sends its next request when it has its answer. Open: arrivals of a Poisson
process at `rate` a second that do not care whether anything was answered; a request's clock starts when it was due,
also if it had to wait for a connection, so that a slow server cannot make its own load lighter ("coordinated
omission").
"""

from __future__ import annotations

import asyncio
import ssl
from array import array
from collections import deque
from dataclasses import dataclass
from random import Random
from time import monotonic

from penstock.cli.bench.client import Connection
from penstock.cli.bench.tally import Tally
from penstock.cli.server import SERVICE, address

_SWEEP = 0.1  # seconds between looks for requests that have timed out
_RETRY = 0.1  # seconds before a refused connection is tried again
_ROW = 64  # requests sent without a look at what has come
_LATE = 0.002  # a loop's timer is that coarse; beyond it the generator is behind


@dataclass(frozen=True)
class Target:
    """Where the requests go, and the requests: ready bytes, taken in turn."""

    host: str
    port: int
    tls: bool
    requests: tuple[bytes, ...]


def target(url: str, method: str, bodies: list[bytes], headers: dict[str, str]) -> Target:
    """The target that a URL, a method, bodies and headers make. Raises CommandFailed for what is no http(s) URL."""
    parts = address(url, SERVICE)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = {"host": parts.netloc.rpartition("@")[2], "user-agent": "penstock-bench", **headers}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    requests = tuple(
        head.encode("latin-1") + (b"content-length: %d\r\n\r\n" % len(body) if body or method == "POST" else b"\r\n") + body
        for body in bodies or [b""]
    )
    tls = parts.scheme == "https"
    return Target(parts.hostname or "", parts.port or (443 if tls else 80), tls, requests)


class Load:
    """One run. `await run(...)` ends when its time is over, when `count` were sent, or when `stop()` was called."""

    def __init__(
        self,
        target: Target,
        *,
        clients: int = 0,
        rate: float = 0.0,
        within: float | None = None,
        timeout: float = 30.0,
        count: int = 0,
        connections: int = 4096,
        random: Random | None = None,
    ) -> None:
        self.target = target
        self.clients = clients
        self.rate = rate
        self.timeout = timeout
        self.count = count
        self.connections = clients or connections
        self.tally = Tally(within)
        self.arrivals = array("d")  # of an open loop: what one at a time would have made of them
        self.idle: list[Connection] = []
        self.busy: dict[Connection, None] = {}
        self.due: deque[float] = deque()  # arrivals that wait for a connection
        self.opening = 0
        self.stopping = False
        self._random = random or Random()
        self._turn = 0
        self._done: asyncio.Future[None]
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> Tally:
        """Send for this long, then wait for what has not been answered."""
        self._loop = loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        self._ssl = ssl.create_default_context() if self.target.tls else None
        tally = self.tally
        tally.began = monotonic()
        timers = [loop.call_later(seconds, self.stop)]
        sweeper = loop.create_task(self._sweep())
        pacer = loop.create_task(self._pace()) if self.rate else None
        for _ in range(self.clients):
            self.due.append(0.0)
        self._open()
        try:
            await self._done
        finally:
            self.stop()
            for timer in timers:
                timer.cancel()
            for task in (sweeper, pacer, *self._tasks):
                if task is not None:
                    task.cancel()
            for connection in (*self.idle, *self.busy):
                connection.start = 0.0
                connection.transport.abort()
            tally.finished = monotonic()
        return tally

    def stop(self) -> None:
        """Send no more. What is open may still be answered."""
        if not self.stopping:
            self.stopping = True
            self.tally.stopped = monotonic()
            if self.clients or self.count:
                self.due.clear()
            self._settle()

    def hurry(self) -> None:
        """Do not even wait for what is open."""
        self.stop()
        if not self._done.done():
            self._done.set_result(None)

    def _settle(self) -> None:
        if self.stopping and not self.busy and not self.due and not self._done.done():
            self._done.set_result(None)

    # Connections

    def _open(self) -> None:
        """As many new connections as are missing."""
        while self.opening < len(self.due) and self.opening + len(self.idle) + len(self.busy) < self.connections:
            self.opening += 1
            task = self._loop.create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self), self.target.host, self.target.port, ssl=self._ssl
            )
        except OSError as error:
            self.opening -= 1
            self._unreachable(error)
            await asyncio.sleep(_RETRY)
            self._open()
            return
        self.opening -= 1
        self._next(connection)

    def _unreachable(self, error: OSError) -> None:
        reason = "no connection: " + (error.strerror or type(error).__name__).lower().partition(" (")[0]
        if isinstance(error, ConnectionRefusedError):
            reason = "no connection: refused"
        self.tally.errors[reason] += 1
        self.tally.sent += 1
        if self.rate and self.due:
            self.due.popleft()
        elif self.stopping:
            self.due.clear()
        self._settle()

    def _next(self, connection: Connection) -> None:
        """The connection is free: it takes what waits, or rests."""
        if not self.due:
            self.idle.append(connection)
            return
        self._send(connection, self.due.popleft() or monotonic())

    def _send(self, connection: Connection, start: float) -> None:
        requests = self.target.requests
        self._turn = turn = (self._turn + 1) % len(requests)
        self.busy[connection] = None
        self.tally.sent += 1
        connection.send(start, requests[turn])
        if self.count and self.tally.sent >= self.count:
            self.stop()

    # What connections report

    def answered(self, connection: Connection, status: int, keep: bool) -> None:
        now = monotonic()
        start, connection.start = connection.start, 0.0
        tally = self.tally
        tally.statuses[status] += 1
        tally.items += connection.items
        if connection.failed:
            tally.errors[connection.failed] += 1
        elif status >= 400:
            tally.errors[str(status)] += 1
        else:
            tally.latencies.append(now - start)
            tally.ends.append(now)
            if connection.first:
                tally.firsts.append(connection.first - start)
        del self.busy[connection]
        if self.clients and not self.stopping:
            if keep:
                self._send(connection, now)
                return
            self.due.append(0.0)
        if not keep:
            connection.transport.abort()
        else:
            self._next(connection)
        if self.due:
            self._open()
        self._settle()

    def lost(self, connection: Connection, reason: str) -> None:
        if not connection.start:  # it was idle, or its answer was complete
            if connection in self.idle:
                self.idle.remove(connection)
            return
        connection.start = 0.0
        self.busy.pop(connection, None)
        self.tally.errors[reason] += 1
        if self.clients and not self.stopping:
            self.due.append(0.0)
        self._open()
        self._settle()

    # Time

    async def _pace(self) -> None:
        """Poisson arrivals, sent as they fall due; a wake-up sends all that have."""
        at = monotonic()
        draw, rate, tally = self._random.expovariate, self.rate, self.tally
        row = 0
        while not self.stopping:
            at += draw(rate)
            now = monotonic()
            row += 1
            if at > now or row == _ROW:
                await asyncio.sleep(max(0.0, at - now))
                row, now = 0, monotonic()
                if self.stopping:
                    return
            late = now - at
            tally.late = max(tally.late, late)
            start = at if late > _LATE else now
            self.arrivals.append(at)
            if self.idle:
                self._send(self.idle.pop(), start)
            else:
                self.due.append(start)
                self._open()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            before = monotonic() - self.timeout
            for connection in [c for c in self.busy if c.start < before]:
                connection.failed = "timed out"
                connection.transport.abort()
            while self.due and 0 < self.due[0] < before:
                self.due.popleft()
                self.tally.errors["timed out"] += 1
                self.tally.sent += 1
            self._settle()
