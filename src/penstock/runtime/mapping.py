"""`map`: a window of running calls between a source of items and a reader of answers.

Nothing runs between the two but callbacks. A map over a map takes from it, without a task, whatever is ready when one
of its calls ends, so that a chain of stages costs little more than its calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextvars import Context, copy_context
from typing import Any, TypeVar

from penstock.core.policy.declared import whole
from penstock.core.policy.scale import Scale
from penstock.errors import ConfigError
from penstock.runtime.call import BoundCall
from penstock.runtime.mapped import Mapped
from penstock.service import Service

U = TypeVar("U")

_AHEAD = 0.002  # seconds of work that a window holds where calls are short
_MOST = 64


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
    answers that nobody has taken yet count. Default: what keeps the service's replicas busy. A plain iterable is read
    on the event loop, so it must not block: what takes long belongs into the function. Leaving the loop cancels what
    runs. With `return_exceptions` a failed item yields its exception instead of ending the whole.
    """
    if concurrency is None:
        return Answers(Mapping(function, items, _window(function), ordered, return_exceptions, learns=_learns(function)))
    whole(f"map(concurrency={concurrency!r})", concurrency)
    return Answers(Mapping(function, items, concurrency, ordered, return_exceptions))


def _window(function: Any) -> int:
    if isinstance(function, Service):
        on, batch, slots = function.options.on, function.options.batch, function.options.slots
        replicas = getattr(on, "replicas", None) or 1
        if isinstance(replicas, Scale):
            replicas = replicas.maximum
        if batch is not None:
            return 2 * replicas * batch.max_size
        if slots is not None:
            return 2 * replicas * slots.size
        if not function.is_async:
            return 4 * replicas if on is not None else 8
    return _MOST


def _learns(function: Any) -> bool:
    """Whether the window widens when calls turn out to be as short as their hand-off."""
    return isinstance(function, Service) and not function.is_async and function.options.batch is None


class Answers(AsyncIterator[Any]):
    """What `map` returns: the reader's end. When it is dropped, what runs is cancelled."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping

    def __aiter__(self) -> Answers:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Any]:
        return self.mapping.next()

    async def aclose(self) -> None:
        """Cancel what runs, and the reading of the source."""
        await self.mapping.aclose()

    def __del__(self) -> None:
        self.mapping.cancel()


class Mapping:
    """The window itself."""

    def __init__(
        self, function: Any, items: Any, window: int, ordered: bool, return_exceptions: bool, *, learns: bool = False
    ) -> None:
        self.function = function
        self.window = window
        self.ordered = ordered
        self.return_exceptions = return_exceptions
        self.learns = learns
        self.begun = 0
        self.pending: deque[Mapped] = deque()  # in order of the items; or of completion
        self.live: dict[Mapped, None] = {}  # unordered: under way, and not yet in `pending`
        self.exhausted = False
        self.failure: BaseException | None = None
        self.reader: asyncio.Future[None] | None = None
        self.room: asyncio.Future[None] | None = None
        self.pump: asyncio.Task[None] | None = None
        self.telling = False  # the map that reads this one, soon, that something came
        self.after: Mapping | None = None  # the map that reads this one
        self.context: Context | None = None  # the reader's, for what callbacks start
        self.before: Mapping | None = None
        self.source: Any
        if isinstance(items, Answers) and items.mapping.after is None and not items.mapping.begun:
            self.source, self.read = items, self._read_map
            self.before = items.mapping
            self.before.after = self
        elif isinstance(items, Iterable):
            self.source, self.read = iter(items), self._read_at_once
        elif isinstance(items, AsyncIterable):
            self.source, self.read = items.__aiter__(), self._read_by_task
        else:
            raise ConfigError(f"map(..., {items!r}): give an iterable, or an async one")

    # The reader's side

    async def next(self) -> Any:
        """The next answer."""
        if self.reader is not None and not self.reader.done():
            raise RuntimeError("this map is being read already; give each reader one of its own")
        if self.context is None:
            self.context = copy_context()
        try:
            while True:
                self.fill()
                if self.ready():
                    return self.take()
                if self.over():
                    break
                self.reader = asyncio.get_running_loop().create_future()
                await self.reader
        except BaseException:
            await self.aclose()
            raise
        failure, self.failure = self.failure, None
        if failure is None:
            raise StopAsyncIteration
        await self.aclose()
        raise failure

    def ready(self) -> bool:
        """Whether the next answer is there."""
        return bool(self.pending) and (not self.ordered or self.pending[0].over)

    def take(self) -> Any:
        """The next answer, which is ready; raises what its call raised."""
        mapped = self.pending.popleft()
        if self.room is not None and not self.room.done():
            self.room.set_result(None)
        error = mapped.error
        if error is None:
            return mapped.value
        if self.return_exceptions and isinstance(error, Exception):
            return error
        raise error

    def load(self) -> int:
        """How many items were read whose answers have not been taken."""
        return len(self.pending) + len(self.live)

    def over(self) -> bool:
        """Whether no answer will come any more."""
        return self.exhausted and not self.pending and not self.live

    # The source's side

    def fill(self) -> None:
        """Read on while there is room. A failure to read counts when all that was read before is answered."""
        if not self.exhausted:
            try:
                self.read()
            except (Exception, asyncio.CancelledError) as error:
                self.failure, self.exhausted = error, True

    def _read_at_once(self) -> None:
        """A plain iterable never waits."""
        for _ in range(self.window - self.load()):
            try:
                item = next(self.source)
            except StopIteration:
                self.exhausted = True
                return
            self._begin(item)

    def _read_map(self) -> None:
        """Take what the map before has ready, as often as that makes room there for more of it."""
        before = self.before
        assert before is not None
        if before.context is None:
            before.context = self.context
        before.fill()
        while (room := self.window - self.load()) > 0 and before.ready():
            while room > 0 and before.ready():
                self._begin(before.take())
                room -= 1
            before.fill()
        if before.over():
            self.exhausted, self.failure = True, before.failure

    def _read_by_task(self) -> None:
        if self.pump is None:
            self.pump = asyncio.get_running_loop().create_task(self._pump())

    async def _pump(self) -> None:
        try:
            async for item in self.source:
                while self.load() >= self.window:
                    self.room = asyncio.get_running_loop().create_future()
                    await self.room
                self._begin(item)
                self._tell()
        except Exception as error:
            self.failure = error
        finally:
            self.exhausted = True
            self._tell()

    def _begin(self, item: Any) -> None:
        call = self.function(item)
        mapped = Mapped(self)
        if self.ordered:
            self.pending.append(mapped)
        else:
            self.live[mapped] = None
        try:
            mapped.begin(call)
        except BaseException:  # a stream, or no awaitable
            if self.ordered:
                self.pending.remove(mapped)
            else:
                del self.live[mapped]
            raise
        self.begun += 1
        if self.learns and not self.begun & 63 and isinstance(call, BoundCall):
            each = call.binding.station.time.peak
            self.window = max(self.window, min(_MOST, int(_AHEAD / max(each, 1e-6))))

    def came(self, mapped: Mapped) -> None:
        """One is answered: if it is next, tell whoever reads this map. A map takes soon all that come meanwhile."""
        if not self.ordered:
            if self.live.pop(mapped, self) is self:
                return  # closed meanwhile
            self.pending.append(mapped)
        elif not self.pending or self.pending[0] is not mapped:
            return
        if self.after is None:
            self._tell()
        elif not self.telling:
            self.telling = True
            asyncio.get_running_loop().call_soon(self._tell, context=self.context)

    def _tell(self) -> None:
        """Something changed for whoever reads this map."""
        self.telling = False
        after = self.after
        if after is not None:
            after.fill()
            if after.over():
                after._tell()
        elif self.reader is not None and not self.reader.done() and (self.ready() or self.over()):
            self.reader.set_result(None)

    # The end

    async def aclose(self) -> None:
        """Cancel what runs, and the reading of the source."""
        await asyncio.gather(*self.cancel(), return_exceptions=True)
        close = getattr(self.source, "aclose", None)
        if close is not None:
            await close()

    def cancel(self) -> list[asyncio.Future[Any]]:
        """Let go of everything; what was under way."""
        self.exhausted = True
        left_behind = [*self.pending, *self.live]
        self.pending.clear()
        self.live.clear()
        left = [future for mapped in left_behind if (future := mapped.cancel()) is not None]
        if self.pump is not None:
            self.pump.cancel()
            left.append(self.pump)
        return left if self.before is None else [*left, *self.before.cancel()]
