"""The threads' side of a thread executor: serving works, and iterating streams.

What only the loop or the books want to know is done after the loop was rung: it has that long a way to wake.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from penstock.executors.base import Body
from penstock.executors.bell import Gate
from penstock.executors.child.window import Window
from penstock.executors.gil import Meter
from penstock.executors.invoke import call_batch, call_each, cancelled, contain, signal_tokens
from penstock.executors.pool import Pool

Message = tuple[Any, Sequence[Any], float, Any]
"""(the work that ended, its results, its seconds, the staged work that was taken), or (None, an error, 0, what else)"""


class Post(Protocol):
    """Tell the loop. With `more`, the pool of a thread that has another message very soon, it need not be woken yet."""

    def __call__(self, message: Message, more: Pool | None = None) -> None: ...


class Shared:
    """What the threads of one service and the loop look at together; every access is one atomic operation."""

    def __init__(self, body: Body, post: Post) -> None:
        self.body = body
        self.post = post
        self.staged: dict[int, Any] = {}  # works by replica
        self.streams: dict[int, Stream] = {}


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
        self._gate = Gate()
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
            post((None, [contain(body.name, error)], 0.0, loaded))
        else:
            post((None, (), 0.0, loaded))
            del loaded
            self._serve(self._bind(target))
            self._close(target)
        post((None, (), 0.0, self))

    def _bind(self, target: Callable[..., Any]) -> Callable[[Sequence[Any]], list[Any]]:
        """What turns the requests of a work into its results."""
        body = self._shared.body
        if body.streams:
            return partial(self._iterate, target)
        return partial(call_batch if body.batched else call_each, body.name, target)

    def _close(self, target: Any) -> None:
        """An instance may have `close`. Nobody waits for it, so what it raises is printed as any thread's error is."""
        close = getattr(target, "close", None) if self._shared.body.is_class else None
        if close is not None:
            try:
                close()
            except BaseException as error:
                threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))

    def _serve(self, execute: Callable[[Sequence[Any]], list[Any]]) -> None:
        """Run works until the pool closes. A staged one starts in the same breath as its predecessor's end is told."""
        pool, meter, gate = self._pool, self.meter, self._gate
        post, staged = self._shared.post, self._shared.staged
        work = pool.wait(gate)
        while work is not None:
            self._current = work
            begin = perf_counter()
            results = execute(work.requests)
            now = perf_counter()
            seconds = now - begin
            follower = staged.pop(work.replica, None)
            following = pool.poll() if follower is None else follower
            post((work, results, seconds, follower), None if following is None else pool)
            pool.ended(seconds)
            self._current = work = following
            del results, follower, following  # an idle thread keeps nothing alive
            if now >= meter.next_probe:
                meter.probe()
            if work is None:
                work = pool.wait(gate)

    def _iterate(self, target: Callable[..., Generator[Any]], requests: Sequence[Any]) -> list[Any]:
        """Run a stream in its request's context."""
        streams, key = self._shared.streams, id(self._current)
        stream = streams[key]
        try:
            context = requests[0].item.context
            return self._pump(target, stream) if context is None else context.run(self._pump, target, stream)
        finally:
            del streams[key]

    def _pump(self, target: Callable[..., Generator[Any]], stream: Stream) -> list[Any]:
        """Hand items over until the generator ends or nobody reads."""
        window, requests, post = stream.window, stream.work.requests, self._shared.post
        if window.closed:
            return cancelled(requests)
        item = requests[0].item
        try:
            if item.context is not None:
                item.enter()
            generator = target(*item.args, **item.kwargs)
            try:
                for value in generator:
                    if window.closed:
                        return cancelled(requests)
                    if stream.add(value):
                        post((None, (), 0.0, stream))
                    if not window.wait():
                        return cancelled(requests)
            finally:
                generator.close()
        except BaseException as error:
            return [contain(self._shared.body.name, error)]
        return [None]
