"""Runs bodies in child processes, one for each replica.

A child runs one unit of work at a time and never queues: what is staged waits here, and is sent in the same turn of
the loop in which the previous answer arrives. A child that dies takes only what it was running with it (WorkerLost);
it is started again after a growing pause, until it has failed too often.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import spawn
from typing import Any

from penstock.errors import BadResult, ConfigError, InvalidRequest, ServiceError, WorkerLost
from penstock.executors.base import Body, Host
from penstock.executors.wire import Decoder, encode

STARTUP = 120.0  # seconds
PAUSES = (0.1, 0.3, 1.0, 2.0, 5.0)
FAILURES = 5
WITHIN = 60.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS")


class GivenUp(ServiceError):
    """A replica failed too often to be started again."""

    final = True


class Child(asyncio.Protocol):
    """One replica's process, as its parent sees it."""

    def __init__(self, owner: ProcessExecutor, index: int) -> None:
        self.owner = owner
        self.index = index
        self.process: subprocess.Popen[bytes] | None = None
        self.transport: asyncio.Transport | None = None
        self.decoder = Decoder()
        self.loaded: asyncio.Future[None] | None = None
        self.work: Any = None
        self.staged: Any = None
        self.number = 0
        self.unacknowledged = 0
        self.failures: list[float] = []
        self.closing = False

    async def launch(self) -> None:
        """Start the process and wait until the body is loaded; raises what its constructor raised."""
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        for name in _THREADS:
            environment[name] = str(self.owner.threads)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "penstock.executors.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        finally:
            theirs.close()
        self.decoder = Decoder()
        self.loaded = self.owner.loop.create_future()
        ours.setblocking(False)
        await self.owner.loop.create_connection(lambda: self, sock=ours)
        try:
            self.write(("load", *self.owner.declaration))
        except Exception as error:
            self.loaded.cancel()
            raise ConfigError(f"{self.owner.body.name}: its constructor's arguments cannot be sent: {error}") from error
        try:
            await asyncio.wait_for(self.loaded, STARTUP)
        except TimeoutError:
            self.kill()
            raise ServiceError(f"{self.owner.body.name}: a replica was not loaded within {STARTUP:g} s") from None

    def write(self, message: Any) -> None:
        assert self.transport is not None
        self.transport.writelines(encode(message))

    # The protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            for message in self.decoder.feed(data):
                self.heed(message)
        except Exception:  # garbage on the wire: the child cannot be trusted any more
            self.kill()
            if self.transport is not None:
                self.transport.abort()

    def heed(self, message: Any) -> None:
        kind, *rest = message
        if kind == "done":
            if self.work is not None and rest[0] == self.number:
                self.done(rest[1])
        elif kind == "items":
            if self.work is not None and rest[0] == self.number:
                self.owner.host.produced(self.work, rest[1])
        elif self.loaded is not None and not self.loaded.done():
            if kind == "up":
                self.loaded.set_result(None)
            else:
                self.loaded.set_exception(rest[0])

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.owner.loop.create_task(self.buried())

    # Work

    def send(self, work: Any) -> None:
        self.work = work
        self.number += 1
        self.unacknowledged = 0
        units = [(request.item.args, dict(request.item.kwargs)) for request in work.requests]
        try:
            self.write(("run", self.number, units))
        except Exception as error:
            name = self.owner.body.name
            refused = [InvalidRequest(f"{name}: the input cannot be sent to its process: {error}") for _ in units]
            self.owner.loop.call_soon(self.done, refused)

    def done(self, results: Sequence[Any]) -> None:
        """The next batch goes out before the answers of this one are read."""
        work, nxt = self.work, self.staged
        self.work = self.staged = None
        if len(results) != len(work.requests):
            results = [BadResult(f"{self.owner.body.name}: {len(results)} results")] * len(work.requests)
        if nxt is not None:
            self.send(nxt)
        self.owner.host.finished(work, results)
        if nxt is not None:
            self.owner.host.taken(nxt)

    # Death

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()

    async def buried(self) -> None:
        """The process has gone, or is going: say what is lost, and start another."""
        owner, process = self.owner, self.process
        assert process is not None
        for _ in range(100):
            if process.poll() is not None:
                break
            await asyncio.sleep(0.01)
        self.kill()
        process.wait()
        if self.loaded is not None and not self.loaded.done():
            self.loaded.set_exception(WorkerLost(f"{owner.body.name}: a replica {_how(process.returncode)} while it loaded"))
            return
        if self.closing:
            self._lose(WorkerLost(f"{owner.body.name} was stopped"))
            return
        error = WorkerLost(f"{owner.body.name}: replica {self.index} {_how(process.returncode)}")
        now = time.monotonic()
        self.failures = [*(at for at in self.failures if now - at < WITHIN), now]
        owner.host.replica_down(self.index, error)
        self._lose(error)
        if not owner.stopping:
            await self.again()

    def _lose(self, error: WorkerLost) -> None:
        work, staged, self.work, self.staged = self.work, self.staged, None, None
        if staged is not None:
            self.owner.host.returned(staged)
        if work is not None:
            self.owner.host.finished(work, [error for _ in work.requests])

    async def again(self) -> None:
        """Start another process, with growing pauses, until it has failed too often."""
        owner = self.owner
        while not owner.stopping:
            if len(self.failures) > FAILURES:
                text = f"{owner.body.name}: replica {self.index} failed {len(self.failures)} times in {WITHIN:g} s"
                owner.host.replica_down(self.index, GivenUp(text))
                return
            await asyncio.sleep(PAUSES[min(len(self.failures), len(PAUSES)) - 1])
            if owner.stopping:
                return
            try:
                await self.launch()
            except Exception as error:
                self.failures.append(time.monotonic())
                owner.host.replica_down(self.index, error)
                continue
            owner.host.replica_up(self.index)
            return


class ProcessExecutor:
    """`replicas` children with `threads` numeric threads each; `buffer` bounds how far a stream may run ahead."""

    depth = 1

    def __init__(
        self, body: Body, host: Host, loop: asyncio.AbstractEventLoop, replicas: int, threads: int, *, buffer: int = 64
    ) -> None:
        qualname = getattr(body.target, "__qualname__", "")
        if not qualname or "<" in qualname:
            raise ConfigError(f"{body.name}: a child process imports its body by name; define it at module level")
        self.body = body
        self.host = host
        self.loop = loop
        self.threads = threads
        self.buffer = buffer
        self.stopping = False
        options = {
            "name": body.name,
            "args": body.args,
            "kwargs": dict(body.kwargs),
            "is_class": body.is_class,
            "is_async": body.is_async,
            "batched": body.batched,
            "streams": body.streams,
            "buffer": buffer,
        }
        preparation = {k: v for k, v in spawn.get_preparation_data(body.name).items() if k != "authkey"}
        self.declaration = (preparation, (body.target.__module__, qualname), options)
        self.children = [Child(self, index) for index in range(replicas)]

    async def start(self) -> None:
        """Launch all children; raises what a constructor raised, with the child's traceback as a note."""
        results = await asyncio.gather(*(child.launch() for child in self.children), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                await self.stop(0.0)
                raise result
        for child in self.children:
            self.host.replica_up(child.index)

    def run(self, work: Any) -> None:
        """Send this work to its child, which is idle."""
        self.children[work.replica].send(work)

    def stage(self, work: Any) -> None:
        """Keep this batch ready for its child."""
        child = self.children[work.replica]
        if child.work is None:
            self.loop.call_soon(self._take, child, work)
        child.staged = work

    def _take(self, child: Child, work: Any) -> None:
        if child.staged is work and child.work is None:
            child.staged = None
            child.send(work)
            self.host.taken(work)

    def revoke(self, work: Any) -> bool:
        """Take a staged batch back; it has not left this process."""
        child = self.children[work.replica]
        if child.staged is not work:
            return False
        child.staged = None
        return True

    def cancel(self, work: Any) -> None:
        """End a stream or an async body; a plain function runs to its end."""
        child = self.children[work.replica]
        if child.work is work and child.transport is not None:
            child.write(("cancel", child.number))

    def resume(self, work: Any, count: int = 1) -> None:
        """The reader took items: let the child produce as many more, in groups."""
        child = self.children[work.replica]
        if child.work is not work or child.transport is None:
            return
        child.unacknowledged += count
        if child.unacknowledged >= max(1, self.buffer // 2):
            child.write(("credit", child.number, child.unacknowledged))
            child.unacknowledged = 0

    async def stop(self, within: float) -> None:
        """Ask the children to end; kill those that have not after `within` seconds."""
        self.stopping = True
        for child in self.children:
            child.closing = True
            if child.staged is not None:
                staged, child.staged = child.staged, None
                self.host.returned(staged)
            if child.transport is not None:
                child.write(("stop",))
        deadline = time.monotonic() + within
        await self._until(lambda: time.monotonic() > deadline)
        for child in self.children:
            child.kill()
        late = time.monotonic() + 2.0
        await self._until(lambda: time.monotonic() > late)
        for child in self.children:
            if child.process is not None:
                child.process.wait()

    async def _until(self, late: Callable[[], bool]) -> None:
        while any(c.process is not None and c.process.poll() is None for c in self.children) and not late():
            await asyncio.sleep(0.01)


def _how(code: int | None) -> str:
    if code is None:
        return "lost its connection"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with {code}"
