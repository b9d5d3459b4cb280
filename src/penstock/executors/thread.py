"""Runs bodies in threads of this process: one thread a replica.

A hand-off costs two lock operations and one write that wakes the loop (`bell`). What threads have to say goes into one
deque, and the loop is woken once for all of it: `_posted` is set by whoever rings and cleared by the drain only after
it saw the deque empty, and the deque is looked at again after clearing. So a message is either seen by the running
drain or rings again.

A staged work is claimed by popping it from `staged`: one atomic operation, so it goes either to the thread that ends
the replica's work, or back to the core, or, if it was staged just after that thread had looked, to the drain that reads
of the end, and so to any thread of the pool.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from penstock.errors import ConfigError
from penstock.executors.base import Body, Host
from penstock.executors.bell import Bell
from penstock.executors.gil import GilWatch
from penstock.executors.invoke import cancelled, signal_tokens
from penstock.executors.lookout import lookout
from penstock.executors.pool import Pool
from penstock.executors.ready import all_ready
from penstock.executors.thread_worker import Message, Shared, Stream, Worker

GRACE = 0.1


class ThreadExecutor:
    """`replicas` threads, each with its own instance when the body is a class.

    `buffer`: items that a stream may be ahead of its reader.
    """

    depth = 1

    def __init__(self, body: Body, host: Host, loop: asyncio.AbstractEventLoop, replicas: int, *, buffer: int = 64) -> None:
        if body.is_async:
            raise ConfigError(f"{body.name} is async and cannot run in threads: use on=ps.Inline() or on=ps.Process()")
        if replicas < 1:
            raise ConfigError(f"{body.name}: replicas={replicas}; at least one thread is needed")
        self.body = body
        self._host = host
        self._loop = loop
        self._inbox: deque[Message] = deque()
        self._posted = False
        self._ring: Callable[[], object]
        self._bell: Bell | None = None
        self._stopping = False
        self._alive = 0
        self._quiet = asyncio.Event()
        self._buffer = buffer
        self._streams = body.streams
        self._shared = Shared(body, self._post)
        pools = [Pool(loop, self._drain) for _ in range(replicas if body.is_class else 1)]
        self._pools = pools if body.is_class else pools * replicas  # by replica
        self._workers = [Worker(self._shared, pool, index) for index, pool in enumerate(self._pools)]
        self._watch = GilWatch((worker.meter for worker in self._workers), self._awake)
        self._present = set(range(replicas))
        self._leaving: dict[int, asyncio.Future[None]] = {}

    async def start(self) -> None:
        """Construct every replica in its own thread; raises what the first failing constructor raised."""
        loop = self._loop
        self._bell = Bell(loop, self._drain)
        self._ring = self._bell.ring
        lookout(loop).ask(self._heard)
        ready = []
        for worker in self._workers:
            loaded: asyncio.Future[None] = loop.create_future()
            ready.append(loaded)
            self._alive += 1
            worker.start(loaded)
        await all_ready(ready, self.stop)
        for worker in self._workers:
            self._host.replica_up(worker.index)

    async def grow(self, index: int) -> None:
        """Start one more thread, which constructs its own instance when the body is a class."""
        pool = Pool(self._loop, self._drain) if self.body.is_class else self._pools[0]
        self._pools[index : index + 1] = [pool]
        worker = Worker(self._shared, pool, index)
        self._workers.append(worker)
        self._alive += 1
        loaded: asyncio.Future[None] = self._loop.create_future()
        worker.start(loaded)
        await loaded
        self._present.add(index)
        self._watch = GilWatch((worker.meter for worker in self._workers), self._awake)
        self._host.replica_up(index)

    async def shrink(self, index: int) -> None:
        """End one thread: the instance's own, or whichever of a function's is idle first."""
        if index not in self._present or not self._alive:
            return
        self._present.remove(index)
        ended = self._leaving[index] = self._loop.create_future()
        self._pools[index].dismiss()
        await ended

    def run(self, work: Any) -> None:
        """Begin this work; a function's threads are interchangeable, an instance has its own."""
        if self._stopping:
            self._inbox.append((work, cancelled(work.requests), 0.0, None))
            self._loop.call_soon(self._drain)
            return
        if self._streams:
            self._shared.streams[id(work)] = Stream(work, self._buffer)
        self._pools[work.replica].give(work)

    def stage(self, work: Any) -> None:
        """Leave this work where a thread looks when it has done the replica's current one."""
        if self._streams:
            self._shared.streams[id(work)] = Stream(work, self._buffer)
        self._shared.staged[work.replica] = work

    def revoke(self, work: Any) -> bool:
        """Take a staged work back, unless its thread was faster."""
        if self._shared.staged.pop(work.replica, None) is None:
            return False
        self._shared.streams.pop(id(work), None)
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

    def _awake(self) -> int:
        return sum(pool.awake() for pool in dict.fromkeys(self._pools))

    async def stop(self, within: float) -> None:
        """Let threads finish; after `within` seconds streams and tokens are cancelled, and the rest is abandoned."""
        self._stopping = True
        for work in list(self._shared.staged.values()):
            if self.revoke(work):
                self._host.returned(work)
        for pool in self._pools:
            pool.close()
        self._drain()  # what threads held back
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

    def _post(self, message: Message, more: Pool | None = None) -> None:
        """Called by threads. `holding` is read after the message is there: the loop lowers it before it drains."""
        self._inbox.append(message)
        if not self._posted and (more is None or not more.holding):
            self._posted = True
            self._ring()

    def _heard(self) -> None:
        if self._inbox:
            self._drain()

    def _drain(self) -> None:
        """Report what has arrived; what arrives meanwhile waits for the loop's next turn, so nobody is starved."""
        inbox, host, staged = self._inbox, self._host, self._shared.staged
        self._posted = True
        try:
            for _ in range(len(inbox)):
                work, results, seconds, then = inbox.popleft()
                if work is None:
                    self._control(then, results)
                elif then is not None:
                    host.finished(work, results, seconds)
                    host.taken(then)
                elif work.replica in staged:
                    self._go_on(work, results, seconds)
                else:
                    host.finished(work, results, seconds)
        finally:
            if not inbox:
                self._posted = False
            if inbox:
                self._posted = True
                self._loop.call_soon(self._drain)

    def _go_on(self, work: Any, results: Sequence[Any], seconds: float) -> None:
        """A work was staged just after the thread had looked for one: it starts now, or comes back if all ends."""
        late = self._shared.staged[work.replica]
        if self._stopping:
            self.revoke(late)
            self._host.finished(work, results, seconds)
            self._host.returned(late)
            return
        del self._shared.staged[work.replica]
        self._pools[work.replica].give(late)
        self._host.finished(work, results, seconds)
        self._host.taken(late)

    def _control(self, control: Any, outcome: Any) -> None:
        """The rarer messages: items of a stream, a thread that has loaded, a thread that ended."""
        if isinstance(control, Stream):
            items = control.collect()
            if items:
                self._host.produced(control.work, items)
        elif isinstance(control, asyncio.Future):
            if control.done():
                return
            if outcome:
                control.set_exception(outcome[0])
            else:
                control.set_result(None)
        else:
            self._pools[control.index].size -= 1
            self._alive -= 1
            self._workers.remove(control)
            if self._leaving:
                self._left(control.index if self.body.is_class else next(iter(self._leaving)))
            if not self._alive:
                self._quiet.set()
                lookout(self._loop).forget(self._heard)
                if self._bell is not None:
                    self._bell.silence()

    def _left(self, index: int) -> None:
        ended = self._leaving.pop(index, None)
        if ended is not None and not ended.done():
            ended.set_result(None)
        self._watch = GilWatch((worker.meter for worker in self._workers), self._awake)
