"""Runs bodies in threads of this process: one thread a replica.

A hand-off costs two lock operations. What threads have to say goes into one deque, and the loop is woken once for all
of it: `_posted` is set by whoever schedules the drain and cleared by the drain only after it saw the deque empty, and
the deque is looked at again after clearing. So a message is either seen by the running drain or schedules the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from penstock.errors import ConfigError
from penstock.executors.base import Body, Host
from penstock.executors.gil import GilWatch
from penstock.executors.invoke import signal_tokens
from penstock.executors.pool import Entry, Pool
from penstock.executors.thread_worker import Message, Shared, Stream, Worker

DEPTH = 16
GRACE = 0.1


class ThreadExecutor:
    """`replicas` threads, each with its own instance when the body is a class.

    `buffer`: items that a stream may be ahead of its reader.
    """

    def __init__(self, body: Body, host: Host, loop: asyncio.AbstractEventLoop, replicas: int, *, buffer: int = 64) -> None:
        if body.is_async:
            raise ConfigError(f"{body.name} is async and cannot run in threads: use on=ps.Inline() or on=ps.Process()")
        if replicas < 1:
            raise ConfigError(f"{body.name}: replicas={replicas}; at least one thread is needed")
        self.body = body
        self.depth = DEPTH
        self._host = host
        self._loop = loop
        self._inbox: deque[Message] = deque()
        self._posted = False
        self._alive = 0
        self._quiet = asyncio.Event()
        self._buffer = buffer
        self._shared = Shared(body, replicas, self._post)
        self._pools = [Pool(loop, self._drain) for _ in range(replicas if body.is_class else 1)]
        self._workers = [Worker(self._shared, self._pool(index), index) for index in range(replicas)]
        self._watch = GilWatch(worker.meter for worker in self._workers)

    async def start(self) -> None:
        """Construct every replica in its own thread; raises what the first failing constructor raised."""
        loop = self._loop
        ready = []
        for worker in self._workers:
            loaded: asyncio.Future[None] = loop.create_future()
            ready.append(loaded)
            self._alive += 1
            worker.start(loaded)
        try:
            await asyncio.gather(*ready)
        except BaseException:
            await asyncio.gather(*ready, return_exceptions=True)
            await self.stop(0.0)
            raise
        for worker in self._workers:
            self._host.replica_up(worker.index)

    def run(self, work: Any) -> None:
        """Begin this work; a function's threads are interchangeable, an instance has its own."""
        if self.body.streams:
            self._shared.streams[id(work)] = Stream(work, self._buffer)
        self._pool(work.replica).give(Entry(work, False))

    def stage(self, work: Any) -> None:
        """Leave this work where a thread looks when it has done the replica's current one."""
        shared = self._shared
        if self.body.streams:
            shared.streams[id(work)] = Stream(work, self._buffer)
        entry = shared.staged[id(work)] = Entry(work, True)
        shared.lanes[work.replica].append(entry)

    def revoke(self, work: Any) -> bool:
        """Take a staged work back, unless its thread was faster."""
        shared = self._shared
        entry = shared.staged.pop(id(work), None)
        if entry is None:
            return False
        shared.streams.pop(id(work), None)
        try:
            shared.lanes[work.replica].remove(entry)
        except (ValueError, IndexError):  # a thread holds it right now, and skips what it cannot claim
            pass
        return True

    def cancel(self, work: Any) -> None:
        """Close a stream at its next item; a unary body is told through its token, if it looks at one."""
        stream = self._shared.streams.get(id(work))
        if stream is not None:
            stream.window.close()
        signal_tokens(work.requests)

    def resume(self, work: Any, count: int = 1) -> None:
        """Let the stream's thread produce `count` more items."""
        stream = self._shared.streams.get(id(work))
        if stream is not None:
            stream.window.acknowledge(count)

    def gil_bound(self) -> bool:
        """Whether the GIL kept the threads from running beside each other in the last second or more."""
        return self._alive > 0 and self._watch.bound()

    async def stop(self, within: float) -> None:
        """Let threads finish; after `within` seconds streams and tokens are cancelled, and the rest is abandoned."""
        for entry in list(self._shared.staged.values()):
            if self.revoke(entry.work):
                self._host.returned(entry.work)
        for pool in self._pools:
            pool.close()
        if await self._settled(within):
            return
        for worker in self._workers:
            worker.cancel_current()
        await self._settled(GRACE)

    async def _settled(self, within: float) -> bool:
        if self._alive:
            try:
                await asyncio.wait_for(self._quiet.wait(), max(within, 0.001))
            except TimeoutError:
                return False
        return True

    def _pool(self, replica: int) -> Pool:
        return self._pools[replica] if self.body.is_class else self._pools[0]

    def _post(self, message: Message, more: bool) -> None:
        """Called by threads; `more`: this thread has another message very soon, which will wake the loop."""
        self._inbox.append(message)
        if not more and not self._posted:
            self._posted = True
            self._wake(self._loop.call_soon_threadsafe)

    def _wake(self, schedule: Callable[[Callable[[], None]], object]) -> None:
        try:
            schedule(self._drain)
        except RuntimeError:  # the loop is closed, and with it everybody who could want to know
            self._inbox.clear()

    def _drain(self) -> None:
        """Report what has arrived; what arrives meanwhile waits for the loop's next turn, so nobody is starved."""
        inbox, host, lanes = self._inbox, self._host, self._shared.lanes
        self._posted = True
        try:
            for _ in range(len(inbox)):
                finished, results, taken, control = inbox.popleft()
                if finished is not None:
                    host.finished(finished, results or ())
                    if taken is not None:
                        host.taken(taken)
                    elif lanes[finished.replica]:
                        self._promote(finished.replica)
                elif taken is not None:
                    host.taken(taken)
                if control is not None:
                    self._control(control, (results or [None])[0])
        finally:
            if not inbox:
                self._posted = False
            if inbox:
                self._posted = True
                self._wake(self._loop.call_soon)

    def _promote(self, replica: int) -> None:
        """The replica ended its work just before another was staged: a thread must be told to take it."""
        lane = self._shared.lanes[replica]
        try:
            entry = lane.popleft()
        except IndexError:
            return
        self._pool(replica).give(entry)

    def _control(self, control: Any, outcome: Any) -> None:
        """The rarer messages: items of a stream, a thread that has loaded, a thread that ended."""
        if isinstance(control, Stream):
            items = control.collect()
            if items:
                self._host.produced(control.work, items)
        elif isinstance(control, asyncio.Future):
            if control.done():
                return
            if outcome is None:
                control.set_result(None)
            else:
                control.set_exception(outcome)
        else:
            self._alive -= 1
            if not self._alive:
                self._quiet.set()
