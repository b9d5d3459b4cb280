"""Callers for bench/overload.py: some tens of thousands of HTTP calls a second from one core, in an open loop.

Plain non-blocking sockets and epoll, and little more a call than the two system calls that it takes. A caller whose
call was answered, also with a refusal, leaves its connection to the next; one whose patience ends closes it. Patience
begins when the request is sent, or its connection begun. An answer counts if it is there within its caller's patience:
it is judged by the time at which the poll that told of it returned, before those who give up are looked for.

Who gives up when is kept in slots of a millisecond, in which constant patience and drawn patience cost the same.
"""

from __future__ import annotations

import errno
import math
import os
import resource
import select
import socket
import time
from array import array
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from random import Random

Patience = Callable[[], float]  # seconds

_SLOTS = 1000  # a second
_AT_ONCE = 64  # calls that are begun before answers are looked for again
_NO_CALL = -1.0
_NO_PORT = 24  # IP_BIND_ADDRESS_NO_PORT: connect chooses the port
_SOURCES = [(f"127.0.0.{n}", 0) for n in range(2, 34)]
_clock = time.monotonic


class Callers:
    """`ended` counts how calls ended: by status, "left" or "broken"; `seconds` the answers by the second since `start`."""

    def __init__(self, port: int, request: bytes) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.address = ("127.0.0.1", port)
        self.request = request
        self.ended: Counter[str] = Counter()
        self.seconds: Counter[int] = Counter()
        self.late = array("d")  # seconds between when a call was due and when it was begun
        self.start = _clock()
        self.waiting = 0  # callers
        self._until: dict[int, float] = {}  # by open descriptor: when its caller leaves
        self._idle: dict[int, None] = {}
        self._unsent: set[int] = set()  # their connections are not made yet
        self._parts: dict[int, bytes] = {}  # of answers that came in pieces
        self._leaving: dict[int, list[int]] = {}  # by slot: descriptors, of which some have been answered since
        self._slot = int(self.start * _SLOTS)
        self._sources = cycle(_SOURCES)
        self._poll = select.epoll()

    # Loads

    def poisson(self, rate: float, patience: Patience, seconds: float, random: Random) -> None:
        self.start = due = _clock()
        end = due + seconds
        due += random.expovariate(rate)
        while due < end:
            begun = 0
            while (now := _clock()) >= due and begun < _AT_ONCE and due < end:
                self.late.append(now - due)
                self._begin(patience(), now)
                due += random.expovariate(rate)
                begun += 1
            self._turn(due)
        self._finish()

    def bursts(self, size: int, patience: Patience, seconds: float) -> None:
        self.start = _clock()
        for n in range(int(seconds)):
            due = self.start + n
            while _clock() < due:
                self._turn(due)
            for begun in range(size):
                now = _clock()
                self.late.append(now - due)
                self._begin(patience(), now)
                if begun % _AT_ONCE == _AT_ONCE - 1:
                    self._turn(now)
        self._finish()

    def closed(self, callers: int, seconds: int) -> float:
        """Answers a second to so many callers who never leave, after a second of warming up."""
        self.start = now = _clock()
        while (now := _clock()) < self.start + 1 + seconds:
            for _ in range(callers - self.waiting):
                self._begin(math.inf, now)
            self._turn(now + 1.0)
        self._finish()
        return sum(self.seconds[1 + n] for n in range(seconds)) / seconds

    def recovery(self, patience: float = 0.25, most: float = 30.0) -> float:
        """How long until a lone call is answered within its patience."""
        begun = _clock()
        while not self.answers(patience):
            if _clock() > begun + most:
                return math.inf
            time.sleep(0.05)
        return _clock() - begun

    def answers(self, patience: float) -> bool:
        """Whether one call is answered within this time."""
        self._turn(_clock())  # to hear of connections that were closed while nobody used them
        before = self.ended["200"]
        self._begin(patience, _clock())
        self._finish()
        return self.ended["200"] > before

    def close(self) -> None:
        for fd in list(self._until):
            self._close(fd)
        self._poll.close()

    # One call

    def _begin(self, patience: float, now: float) -> None:
        self.waiting += 1
        until = now + patience
        fd = self._send(until)
        if fd >= 0 and until < math.inf:
            slot = int(until * _SLOTS)
            leaving = self._leaving.get(slot)
            if leaving is None:
                self._leaving[slot] = [fd]
            else:
                leaving.append(fd)

    def _send(self, until: float) -> int:
        """The descriptor by which the request went, or goes when its connection is made; -1 if there is none."""
        while self._idle:
            fd, _ = self._idle.popitem()
            try:
                os.write(fd, self.request)
            except OSError:  # the server has closed it while it was idle
                self._close(fd)
                continue
            self._until[fd] = until
            return fd
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # too many open files
            return self._end(-1, "no socket")
        sock.setsockopt(socket.IPPROTO_IP, _NO_PORT, 1)
        sock.bind(next(self._sources))
        error = sock.connect_ex(self.address)
        fd = sock.detach()
        self._until[fd] = until
        if error not in (0, errno.EINPROGRESS):
            return self._end(fd, "broken")
        try:
            os.write(fd, self.request)
            self._poll.register(fd, select.EPOLLIN)
        except BlockingIOError:
            self._unsent.add(fd)
            self._poll.register(fd, select.EPOLLOUT)
        except OSError:
            return self._end(fd, "broken")
        return fd

    def _turn(self, due: float) -> None:
        """Hear of answers, and let those leave whose patience has ended; until `due`, and for a millisecond or two at most."""
        events = self._poll.poll(min(max(0.0, due - _clock()), 0.001), 1024)
        now = _clock()
        for fd, _ in events:
            if fd in self._unsent:
                self._connected(fd)
            else:
                self._receive(fd, now)
        for slot in range(self._slot, slot_now := int(now * _SLOTS)):
            for fd in self._leaving.pop(slot, ()):
                if _NO_CALL < self._until.get(fd, _NO_CALL) <= now:
                    self._end(fd, "left")
        self._slot = slot_now

    def _connected(self, fd: int) -> None:
        try:
            os.write(fd, self.request)
        except OSError:
            self._end(fd, "broken")
            return
        self._unsent.discard(fd)
        self._poll.modify(fd, select.EPOLLIN)

    def _receive(self, fd: int, now: float) -> None:
        try:
            data = os.read(fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        until = self._until[fd]
        if not data or until == _NO_CALL:
            self._end(fd, "broken")
            return
        if self._parts:
            data = self._parts.pop(fd, b"") + data
        head, found, body = data.partition(b"\r\n\r\n")
        if not found:
            self._parts[fd] = data
            return
        head = head.lower()
        at = head.find(b"\r\ncontent-length:") + 17
        if at < 17 or len(body) < int(head[at : (head + b"\r\n").find(b"\r\n", at)]):
            self._parts[fd] = data
            return
        if now > until:
            self._end(fd, "left")
            return
        status = head[9:12].decode()
        self.ended[status] += 1
        if status == "200":
            self.seconds[int(now - self.start)] += 1
        self.waiting -= 1
        self._until[fd] = _NO_CALL
        if b"\r\nconnection: close" in head:
            self._close(fd)
        else:
            self._idle[fd] = None

    def _end(self, fd: int, how: str) -> int:
        """The caller of this connection, if it has one, goes without an answer; the connection is closed."""
        if fd < 0 or self._until[fd] != _NO_CALL:
            self.ended[how] += 1
            self.waiting -= 1
        if fd >= 0:
            self._close(fd)
        return -1

    def _close(self, fd: int) -> None:
        del self._until[fd]
        self._idle.pop(fd, None)
        self._unsent.discard(fd)
        self._parts.pop(fd, None)
        os.close(fd)

    def _finish(self) -> None:
        """Until every caller has been answered or has left."""
        while self.waiting:
            self._turn(_clock() + 1.0)
