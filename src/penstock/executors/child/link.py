"""The child's two sockets. Frames of work are read by the main thread itself, so nothing is handed between threads.

A second thread listens to the parent's control socket: cancels, credits for streams, answers to nested calls. It says
every `beat` seconds that this process can run Python, and when the parent is gone, so is the child, whatever user code does.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from .gauge import device_bytes, resident_mib
from .wire import ANSWER, BEAT, CANCEL, CREDIT, Frame, Reader, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from .arena import Inbox, Outbox


class Link:
    """To the parent. Any thread may write, one at a time."""

    def __init__(self, work: socket.socket, control: socket.socket, inbox: Inbox, outbox: Outbox) -> None:
        self._sock = work
        self._control = control
        self._inbox = inbox
        self._outbox = outbox
        self._reader = Reader(work, inbox, outbox.free)
        self._arrived = select.poll()
        self._arrived.register(work, select.POLLIN)
        self.ended = False  # the parent will send no more work
        self._writing = threading.Lock()
        self.on_credit: Callable[[int, int], None] = lambda number, count: None
        self.on_cancel: Callable[[int], None] = lambda number: None
        self.on_answer: Callable[[int, Frame], None] = lambda number, frame: None
        self.beat = 1.0

    def receive(self, wait: bool = True) -> Frame | None:
        """The next frame of work, or None: there will be none, or `wait` is False and none has arrived."""
        while not self.ended:
            frame = self._reader.next()
            if frame is not None:
                return frame
            if not wait and not self._arrived.poll(0):
                return None
            try:
                self.ended = not self._reader.fill()
            except OSError:
                self.ended = True
        return None

    def fileno(self) -> int:
        """Readable when a frame of work may have arrived."""
        return self._sock.fileno()

    def send(self, kind: int, number: int, message: Any) -> None:
        """Write a frame. Raises what pickling raises, and then nothing was written."""
        with self._writing:
            encoded = encode(kind, number, message, self._outbox, self._inbox)
            try:
                for piece in encoded.pieces:
                    self._sock.sendall(piece)
            except OSError:
                os._exit(0)  # the parent is gone

    def listen(self) -> None:
        """The listening thread's life."""
        reader = Reader(self._control, self._inbox, self._outbox.free)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        due = 0.0
        try:
            while True:
                now = time.monotonic()
                if now >= due:
                    due = now + self.beat
                    self._control.sendall(encode(BEAT, resident_mib(), device_bytes()).pieces[0])
                if not poll.poll(max(0.0, due - now) * 1000):
                    continue
                if not reader.fill():
                    break
                while (frame := reader.next()) is not None:
                    self._heed(frame)
        except OSError:
            pass
        os._exit(0)  # the parent is gone

    def _heed(self, frame: Frame) -> None:
        if frame.kind == CREDIT:
            self.on_credit(frame.number, frame.load())
        elif frame.kind == CANCEL:
            self.on_cancel(frame.number)
        elif frame.kind == ANSWER:
            self.on_answer(frame.number, frame)
