"""The threads' side of a thread executor: serving works, and iterating streams.

A staged work is claimed by popping it from `staged`: one atomic operation, so it goes either to a thread or back to the
core, without a lock. A replica's staged works wait in its lane; the thread that ends a work of that replica looks
there, once. What arrives just after that look is found by the loop when it reads of the end.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from time import perf_counter
from typing import Any

from penstock.executors.base import Body
from penstock.executors.child.window import Window
from penstock.executors.gil import Meter
from penstock.executors.invoke import call_batch, call_each, cancelled, contain, signal_tokens
from penstock.executors.pool import Entry, Pool

Message = tuple[Any, list[Any] | None, Any, Any]
"""(the work that ended, its results, the staged work that was taken, what else there is to tell)"""


class Shared:
    """What the threads of one service and the loop look at together; every access is one atomic operation."""

    def __init__(self, body: Body, replicas: int, post: Callable[[Message, bool], None]) -> None:
        self.body = body
        self.post = post
        self.staged: dict[int, Entry] = {}
        self.streams: dict[int, Stream] = {}
        self.lanes: list[deque[Entry]] = [deque() for _ in range(replicas)]

    def claim(self, entry: Entry | None) -> bool:
        """Whether this entry may run: it was never staged, or has not been revoked."""
        return entry is not None and (not entry.staged or self.staged.pop(id(entry.work), None) is entry)

    def claim_staged(self, replica: int) -> Any:
        """The work that the replica goes on with, or None."""
        lane = self.lanes[replica]
        while lane:
            try:
                entry = lane.popleft()
            except IndexError:
                break
            if self.claim(entry):
                return entry.work
        return None


class Stream:
    """A running stream: its window, and the items on their way to the loop."""

    __slots__ = ("_items", "_told", "window", "work")

    def __init__(self, work: Any, buffer: int) -> None:
        self.work = work
        self.window = Window(buffer)
        self._items: deque[Any] = deque()
        self._told = False

    def add(self, item: Any) -> bool:
        """Called by the thread. True: the loop does not know yet that there is something."""
        self._items.append(item)
        self.window.send()
        if self._told:
            return False
        self._told = True
        return True

    def collect(self) -> list[Any]:
        """Called by the loop: everything so far. The flag falls first, so a later item is announced again."""
        self._told = False
        items = self._items
        return [items.popleft() for _ in range(len(items))]


class Worker:
    """A daemon thread that serves the works of its pool until that closes."""

    def __init__(self, shared: Shared, pool: Pool, index: int) -> None:
        self.index = index
        self.meter = Meter()
        self._shared = shared
        self._pool = pool
        self._gate = threading.Lock()
        self._gate.acquire()
        self._current: Any = None
        pool.size += 1

    def start(self, loaded: asyncio.Future[None]) -> None:
        """Begin the thread; `loaded` learns how the constructor went."""
        name = f"penstock-{self._shared.body.name}-{self.index}"
        threading.Thread(target=self._main, args=(loaded,), name=name, daemon=True).start()

    def cancel_current(self) -> None:
        """Nobody waits any more for whatever runs here."""
        work = self._current
        if work is not None:
            stream = self._shared.streams.get(id(work))
            if stream is not None:
                stream.window.close()
            signal_tokens(work.requests)

    # From here on, in the thread.

    def _main(self, loaded: asyncio.Future[None]) -> None:
        body, post = self._shared.body, self._shared.post
        self.meter.attach()
        try:
            target = body.load()
        except BaseException as error:
            post((None, [contain(body.name, error)], None, loaded), False)
        else:
            post((None, [None], None, loaded), False)
            del loaded
            self._serve(self._bind(target))
            self._close(target)
        self._pool.size -= 1
        post((None, None, None, self), False)

    def _bind(self, target: Callable[..., Any]) -> Callable[[Any], list[Any]]:
        """What turns a work into its results."""
        body = self._shared.body
        name = body.name
        if body.streams:
            return partial(self._iterate, target)
        call = call_batch if body.batched else call_each
        return lambda work: call(name, target, work.requests)

    def _close(self, target: Any) -> None:
        """An instance may have `close`. Nobody waits for it, so what it raises is printed as any thread's error is."""
        close = getattr(target, "close", None) if self._shared.body.is_class else None
        if close is not None:
            try:
                close()
            except BaseException as error:
                threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))

    def _serve(self, execute: Callable[[Any], list[Any]]) -> None:
        """Run works until the pool closes. A staged one starts in the same breath as its predecessor's end is told."""
        shared, pool, meter = self._shared, self._pool, self.meter
        post, lanes, staged = shared.post, shared.lanes, shared.staged
        entry = pool.wait(self._gate)
        while entry is not None:
            work = entry.work
            if entry.staged:
                if staged.pop(id(work), None) is entry:
                    post((None, None, work, None), False)
                else:
                    work = None
            entry = None
            while work is not None:
                self._current = work
                meter.since = begin = perf_counter()
                results = execute(work)
                elapsed = perf_counter() - begin
                meter.since, meter.busy = 0.0, meter.busy + elapsed
                pool.ended(elapsed)
                follower = shared.claim_staged(work.replica) if lanes[work.replica] else None
                if follower is None:
                    entry = pool.poll()
                post((work, results, follower, None), pool.short and (entry is not None or follower is not None))
                self._current = work = follower
                del results, follower  # an idle thread keeps nothing alive
            if entry is None:
                meter.probe()
                entry = pool.wait(self._gate)

    def _iterate(self, target: Callable[..., Generator[Any]], work: Any) -> list[Any]:
        """Run a stream in its request's context."""
        streams = self._shared.streams
        stream = streams[id(work)]
        try:
            context = work.requests[0].item.context
            return self._pump(target, stream) if context is None else context.run(self._pump, target, stream)
        finally:
            del streams[id(work)]

    def _pump(self, target: Callable[..., Generator[Any]], stream: Stream) -> list[Any]:
        """Hand items over until the generator ends or nobody reads."""
        window, requests, post = stream.window, stream.work.requests, self._shared.post
        if window.closed:
            return cancelled(requests)
        item = requests[0].item
        try:
            generator = target(*item.args, **item.kwargs)
            try:
                for value in generator:
                    if window.closed:
                        return cancelled(requests)
                    if stream.add(value):
                        post((None, None, None, stream), False)
                    if not window.wait():
                        return cancelled(requests)
            finally:
                generator.close()
        except BaseException as error:
            return [contain(self._shared.body.name, error)]
        return [None]
