"""One child process, as its parent sees it: from its start to its burial."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any, Protocol

from penstock.errors import BadResult, WorkerLost
from penstock.executors.base import Host
from penstock.executors.child import outcome
from penstock.executors.child.wire import (
    BEAT,
    BROKEN,
    CALL,
    CANCEL,
    CREDIT,
    DONE,
    DROP,
    ITEMS,
    LOAD,
    OUTGROWN,
    RUN,
    STOP,
    TELL,
    UP,
    Encoded,
    Frame,
    encode,
    together,
)
from penstock.executors.invoke import own_error
from penstock.executors.process_calls import Calls
from penstock.executors.process_channel import Channel
from penstock.executors.process_launch import Launched
from penstock.executors.process_output import Output

_GOING = 0.2  # seconds that a process may take to end after its sockets


class Owner(Protocol):
    """Whom a child tells; always on the loop's thread."""

    def done(self, child: Child, frame: Frame) -> None: ...
    def items(self, child: Child, frame: Frame) -> None: ...
    def called(self, child: Child, frame: Frame) -> None: ...
    def died(self, child: Child, how: str) -> None: ...


class Child:
    """A process with one body loaded. It runs one unit at a time and never queues."""

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner, host: Host, launched: Launched, name: str) -> None:
        self._loop = loop
        self._owner = owner
        self._process = launched.process
        self._outbox, self._inbox = launched.outbox, launched.inbox
        self._output = [
            Output(loop, launched.stdout, "stdout", name),
            Output(loop, launched.stderr, "stderr", name),
        ]
        self.name = name
        self.pid = launched.process.pid
        self.loaded: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.resident_mib = 0
        self.device_bytes = (0, 0, 0)  # used, reserved, the most used
        self.calls = Calls(self, host)
        self.heard = False  # since the watchdog looked
        inbox, freed = launched.inbox, launched.outbox.free
        self._work = Channel(loop, launched.work, inbox, freed, self._heed, self._cut)
        self._control = Channel(loop, launched.control, inbox, freed, self._heed, self._cut)
        self._pidfd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else -1
        if self._pidfd >= 0:
            loop.add_reader(self._pidfd, self._exited)

    def load(self, declaration: Any) -> None:
        """Let it load its body; `loaded` tells how that went."""
        self._work.write(encode(LOAD, 0, declaration))

    # Work

    def encode(self, number: int, units: Any, lifted: bool = False) -> Encoded:
        """A unit, ready to be written. Raises what pickling raises."""
        return encode(RUN, number, units, self._outbox, self._inbox, lifted=lifted)

    def forget(self, encoded: Encoded) -> None:
        """This unit will not be sent."""
        encoded.undo(self._outbox, self._inbox)

    def run(self, encoded: Encoded) -> None:
        self._work.write(encoded)

    def tell(self, frames: list[Encoded], left: Sequence[int], read: Sequence[tuple[int, int]]) -> None:
        """What came for a model's slots in one turn of the loop: starts, who has left, and how much was read."""
        if left or read:
            frames = [*frames, encode(TELL, 0, (left, read), None, self._inbox)]
        self._work.write(together(frames))

    def cancel(self, number: int) -> None:
        self._control.write(encode(CANCEL, number, None))

    def credit(self, number: int, count: int) -> None:
        self._control.write(encode(CREDIT, number, count, None, self._inbox))

    def answer(self, kind: int, number: int, message: Any) -> None:
        self._control.write(encode(kind, number, message, self._outbox, self._inbox))

    def _heed(self, frame: Frame) -> None:
        kind = frame.kind
        self.heard = True
        if kind in (DONE, OUTGROWN):
            self._owner.done(self, frame)
        elif kind == ITEMS:
            self._owner.items(self, frame)
        elif kind == CALL:
            self._owner.called(self, frame)
        elif kind == DROP:
            self.calls.drop(frame.number)
        elif kind == BEAT:
            self.resident_mib = frame.number
            self.device_bytes = frame.load() or self.device_bytes
        elif kind == UP:
            if not self.loaded.done():
                self.loaded.set_result(None)
        elif kind == BROKEN and not self.loaded.done():
            self.loaded.set_exception(error_of(frame.load()))

    # The end

    def stop(self) -> None:
        """Let it end when it has nothing to do."""
        self._work.write(encode(STOP, 0, None))

    def kill(self) -> None:
        """End it now, and what it has started."""
        if self._process.returncode is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass

    def _cut(self) -> None:
        """It does not speak to us any more: it is going, or it wrote garbage. What it has answered counts."""
        if self._work.open:
            self._work.drain()
        self._work.close()
        self._control.close()
        self._loop.call_later(_GOING, self.kill)
        if self._pidfd < 0:
            self._poll()

    def _poll(self) -> None:
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self._loop.call_later(0.01, self._poll)
        else:
            self._exited()

    def _exited(self) -> None:
        """The process has ended. What it still said is heard first, and what it has started ends with it."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        if self._work.open:
            self._work.drain()
        self._work.close()
        self._control.close()
        self.kill()
        for output in self._output:
            output.drain()
        self.calls.abandon()
        self._outbox.close()
        self._inbox.close()
        how = _how(self._process.wait())
        if self._work.garbage or self._control.garbage:
            how = "wrote what is no message"
        self.gone.set_result(None)
        if not self.loaded.done():
            self.loaded.set_exception(WorkerLost(f"{self.name}: a replica {how} while it loaded"))
        self._owner.died(self, how)


def error_of(failure: outcome.Failure) -> BaseException:
    """The exception that a failure in the child becomes here."""
    _, kind, text, _ = failure
    return outcome.revive(failure) or own_error(kind, text)


def results_of(frame: Frame, expected: int, name: str) -> tuple[Sequence[Any], float | None]:
    """One result a request from a unit's answer, and how many seconds the body ran."""
    try:
        results, failures, shared, seconds = frame.load()
        if shared:
            return [error_of(failures[0]) for _ in range(expected)], seconds
        for failure in failures or ():
            results[failure[0]] = error_of(failure)
        if len(results) != expected:
            raise ValueError(f"{len(results)} results for {expected} requests")
    except Exception as error:
        return [BadResult(f"{name} returned what cannot be read here: {type(error).__name__}: {error}")] * expected, None
    return results, seconds


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exited with {code}"
    named = -code in set(signal.Signals)  # those between SIGRTMIN and SIGRTMAX are not
    return f"was killed by {signal.Signals(-code).name if named else f'signal {-code}'}"
