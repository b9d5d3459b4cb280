"""One thread of a thread executor, and the queue through which work reaches it.

A staged work is claimed by popping it from `_staged`: one atomic operation, so it goes either to the thread or back to
the core, without a lock. The queue's entry of a revoked work is removed, or skipped by the thread when it is too late
for that. `gate` is a lock that stands for "nothing new": only the loop releases it, after it has filled the queue.
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
from penstock.executors.flow import Window
from penstock.executors.gil import Meter
from penstock.executors.invoke import call_batch, call_each, cancelled, contain, signal_tokens

Post = Callable[[tuple[Any, ...]], None]


class Entry:
    """A work on its way to the thread. Compared by identity, whatever the work's own equality is."""

    __slots__ = ("staged", "work")

    def __init__(self, work: Any, staged: bool) -> None:
        self.work = work
        self.staged = staged


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
    """A daemon thread that serves one replica until it is given None."""

    def __init__(self, body: Body, index: int, buffer: int, post: Post) -> None:
        self.index = index
        self.meter = Meter()
        self._body = body
        self._buffer = buffer
        self._post = post
        self._queue: deque[Entry] = deque()
        self._staged: dict[int, Entry] = {}
        self._gate = threading.Lock()
        self._gate.acquire()
        self._streams: dict[int, Stream] = {}
        self._current: Any = None

    # The loop's side.

    def start(self, loaded: asyncio.Future[None]) -> None:
        """Begin the thread; `loaded` learns how the constructor went."""
        name = f"penstock-{self._body.name}-{self.index}"
        threading.Thread(target=self._main, args=(loaded,), name=name, daemon=True).start()

    def give(self, work: Any, staged: bool = False) -> None:
        """Put a work, or None for the end, into the queue."""
        if work is not None and self._body.streams:
            self._streams[id(work)] = Stream(work, self._buffer)
        entry = Entry(work, staged)
        if staged:
            self._staged[id(work)] = entry
        self._queue.append(entry)
        if self._gate.locked():
            self._gate.release()

    def take_back(self, work: Any) -> bool:
        """Whether the thread had not yet taken this staged work; then it is gone."""
        entry = self._staged.pop(id(work), None)
        if entry is None:
            return False
        self._streams.pop(id(work), None)
        try:
            self._queue.remove(entry)
        except (ValueError, IndexError):  # the thread is at the queue right now; it skips what it cannot claim
            pass
        return True

    def end(self) -> list[Any]:
        """Ask the thread to end after what it has begun; the staged works that it no longer gets."""
        staged = [entry.work for entry in list(self._staged.values())]
        returned = [work for work in staged if self.take_back(work)]
        self.give(None)
        return returned

    def resume(self, work: Any, count: int) -> None:
        """The stream's reader took `count` items."""
        stream = self._streams.get(id(work))
        if stream is not None:
            stream.window.acknowledge(count)

    def cancel(self, work: Any) -> None:
        """Close the work's stream; it ends at its next item."""
        stream = self._streams.get(id(work))
        if stream is not None:
            stream.window.close()

    def cancel_current(self) -> None:
        """Nobody waits any more for whatever runs here."""
        work = self._current
        if work is not None:
            self.cancel(work)
            signal_tokens(work.requests)

    # The thread's side.

    def _main(self, loaded: asyncio.Future[None]) -> None:
        self.meter.attach()
        try:
            target = self._body.load()
        except BaseException as error:
            self._post((None, contain(self._body.name, error), None, loaded))
        else:
            self._post((None, None, None, loaded))
            del loaded
            self._serve(self._bind(target))
            self._close(target)
        self._post((None, None, None, self))

    def _bind(self, target: Callable[..., Any]) -> Callable[[Any], list[Any]]:
        """What turns a work into its results."""
        name = self._body.name
        if self._body.streams:
            return partial(self._iterate, target)
        call = call_batch if self._body.batched else call_each
        return lambda work: call(name, target, work.requests)

    def _close(self, target: Any) -> None:
        """An instance may have `close`; at this point nobody is left to hear what it raises but the log of threads."""
        close = getattr(target, "close", None) if self._body.is_class else None
        if close is not None:
            try:
                close()
            except BaseException as error:
                threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))

    def _serve(self, execute: Callable[[Any], list[Any]]) -> None:
        """Run works until None comes. A staged one starts in the same breath as its predecessor's end is posted."""
        queue, meter, post = self._queue, self.meter, self._post
        entry = self._wait()
        while (work := entry.work) is not None:
            if entry.staged:
                post((None, None, work, None))
            del entry
            while work is not None:
                self._current = work
                meter.since = begin = perf_counter()
                results: list[Any] | None = execute(work)
                meter.busy += (end := perf_counter()) - begin
                meter.since = 0.0
                self._current = None
                follower = self._claim_next() if queue else None
                post((work, results, follower, None))
                work = follower
            results = follower = None  # an idle thread keeps nothing alive
            meter.probe(end)
            entry = self._wait()

    def _claim_next(self) -> Any:
        """The work of the first entry that is still staged, or None."""
        queue = self._queue
        while True:
            try:
                entry = queue.popleft()
            except IndexError:
                return None
            if not entry.staged:  # the end, or a work that was given to a free replica: the outer loop takes it
                queue.appendleft(entry)
                return None
            if self._staged.pop(id(entry.work), None) is entry:
                return entry.work

    def _wait(self) -> Entry:
        queue, gate, staged = self._queue, self._gate, self._staged
        while True:
            try:
                entry = queue.popleft()
            except IndexError:
                gate.acquire()
                continue
            if not entry.staged or staged.pop(id(entry.work), None) is entry:
                return entry
            del entry

    def _iterate(self, target: Callable[..., Generator[Any]], work: Any) -> list[Any]:
        """Run a stream in its request's context."""
        stream = self._streams[id(work)]
        try:
            context = work.requests[0].item.context
            return self._pump(target, stream) if context is None else context.run(self._pump, target, stream)
        finally:
            del self._streams[id(work)]

    def _pump(self, target: Callable[..., Generator[Any]], stream: Stream) -> list[Any]:
        """Hand items over until the generator ends or nobody reads."""
        window, requests = stream.window, stream.work.requests
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
                        self._post((None, None, None, stream))
                    if not window.wait():
                        return cancelled(requests)
            finally:
                generator.close()
        except BaseException as error:
            return [contain(self._body.name, error)]
        return [None]
