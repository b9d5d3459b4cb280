"""Calls together: side by side (`join`), within a time (`within`), and one for each of many items (`map`)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar, overload

from penstock.context import budget
from penstock.errors import ConfigError, DeadlineExceeded
from penstock.runtime.call import BoundCall
from penstock.service import Service

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
T = TypeVar("T")
U = TypeVar("U")


@overload
async def join(a: Awaitable[A], b: Awaitable[B], /) -> tuple[A, B]: ...
@overload
async def join(a: Awaitable[A], b: Awaitable[B], c: Awaitable[C], /) -> tuple[A, B, C]: ...
@overload
async def join(*calls: Awaitable[T]) -> tuple[T, ...]: ...
async def join(*calls: Awaitable[Any]) -> tuple[Any, ...]:
    """Run calls side by side; their answers in order. If one fails the others are cancelled, and its error is raised."""
    tasks = [_start(call) for call in calls]
    try:
        return tuple([await task for task in tasks])
    except BaseException:
        failed = next((t for t in tasks if t.done() and not t.cancelled() and t.exception() is not None), None)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if failed is not None:
            error = failed.exception()
            if error is not None:
                raise error from None
        raise


async def within(seconds: float, make: Callable[[], Awaitable[T]] | Awaitable[T]) -> T:
    """The answer of `make()`, or DeadlineExceeded after `seconds`; calls made in `make` get that deadline.

    A call that was made before may be given instead of `make`; it is then cancelled when the time is over, but its
    queue does not know the deadline.
    """
    if not seconds > 0:
        raise ConfigError(f"within({seconds!r}, ...): seconds, greater than 0")
    try:
        async with asyncio.timeout(seconds):
            if callable(make):
                with budget(within=seconds):
                    return await make()
            return await make
    except DeadlineExceeded:
        raise
    except TimeoutError as error:
        raise DeadlineExceeded(f"not done within {seconds:g} s") from error


def map(  # noqa: A001 - the field's own name
    function: Service[..., U] | Callable[[Any], Awaitable[U]],
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    concurrency: int | None = None,
    ordered: bool = True,
    return_exceptions: bool = False,
) -> AsyncIterator[U]:
    """`function(item)` for each item, up to `concurrency` at once; yields answers in order, or as they come.

    Reads `items` (any iterable, or an async one, such as another `map`) only as far ahead as `concurrency` allows:
    answers that nobody has taken yet count. Default: what keeps the service's replicas busy. Leaving the loop cancels
    what runs. With `return_exceptions` a failed item yields its exception instead of ending the whole.
    """
    if concurrency is None:
        concurrency = _window(function)
    if concurrency < 1:
        raise ConfigError(f"map(concurrency={concurrency}): at least 1")
    return _Map(function, items, concurrency, ordered, return_exceptions)


def _window(function: Any) -> int:
    if isinstance(function, Service):
        on, batch = function.options.on, function.options.batch
        replicas = getattr(on, "replicas", None) or 1
        if batch is not None:
            return 2 * batch.max_size * replicas
        if not function.is_async:
            return 4 * replicas if on is not None else 8
    return 64


class _Map(AsyncIterator[Any]):
    """A window of running calls between a source and a reader.

    A source that cannot wait (a plain iterable) is read by the reader itself; an async one by a task of its own, which
    takes all that is ready at once when the source is another map.
    """

    def __init__(self, function: Any, items: Any, window: int, ordered: bool, return_exceptions: bool) -> None:
        self.function = function
        self.window = window
        self.ordered = ordered
        self.return_exceptions = return_exceptions
        self.pending: deque[asyncio.Future[Any]] = deque()  # in order of the items; or of completion
        self.running = 0  # unordered: started and not yet in `pending`
        self.source: Any = iter(items) if isinstance(items, Iterable) else items.__aiter__()
        self.waits = not isinstance(items, Iterable)
        self.exhausted = False
        self.failure: BaseException | None = None
        self.pump: asyncio.Task[None] | None = None
        self.reader: asyncio.Future[None] | None = None
        self.room: asyncio.Future[None] | None = None
        self.live: dict[asyncio.Future[Any], None] = {}

    def __aiter__(self) -> _Map:
        return self

    async def __anext__(self) -> Any:
        try:
            while True:
                self._fill()
                if self.pending and (not self.ordered or self.pending[0].done()):
                    return self._take()
                if self.pending:
                    await asyncio.wait((self.pending[0],))
                    continue
                if self.exhausted and not self.running:
                    break
                self.reader = asyncio.get_running_loop().create_future()
                await self.reader
        except BaseException:
            await self.aclose()
            raise
        if self.failure is not None:
            raise self.failure
        raise StopAsyncIteration

    def _take(self) -> Any:
        future = self.pending.popleft()
        if self.room is not None and not self.room.done():
            self.room.set_result(None)
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is None:
            return future.result()
        if self.return_exceptions and isinstance(error, Exception):
            return error
        raise error

    def _load(self) -> int:
        return len(self.pending) + self.running

    def _fill(self) -> None:
        """Keep the window full."""
        if self.waits:
            if self.pump is None:
                self.pump = asyncio.get_running_loop().create_task(self._read())
            return
        while not self.exhausted and self._load() < self.window:
            try:
                item = next(self.source)
            except StopIteration:
                self.exhausted = True
            else:
                self._begin(item)

    def _begin(self, item: Any) -> None:
        future = _start(self.function(item))
        if self.ordered:
            self.pending.append(future)
        else:
            self.running += 1
            self.live[future] = None
            future.add_done_callback(self._came)

    def _came(self, future: asyncio.Future[Any]) -> None:
        self.running -= 1
        del self.live[future]
        self.pending.append(future)
        self._tell()

    def _tell(self) -> None:
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)

    async def _read(self) -> None:
        source = self.source
        try:
            async for item in source:
                while self._load() >= self.window:
                    self.room = asyncio.get_running_loop().create_future()
                    await self.room
                self._begin(item)
                self._tell()
        except Exception as error:
            self.failure = error
        finally:
            self.exhausted = True
            self._tell()

    async def aclose(self) -> None:
        """Cancel what runs, and the reading of the source."""
        self.exhausted = True
        tasks: list[asyncio.Future[Any]] = [*self.pending, *self.live]
        if self.pump is not None:
            tasks.append(self.pump)
        self.pending.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        close = getattr(self.source, "aclose", None)
        if close is not None:
            await close()

    def __del__(self) -> None:
        for future in (*self.pending, *self.live):
            future.cancel()
        if self.pump is not None:
            self.pump.cancel()


def _start(call: Awaitable[Any]) -> asyncio.Future[Any]:
    if isinstance(call, BoundCall):
        return call.start()
    return asyncio.ensure_future(call)
