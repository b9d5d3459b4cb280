"""Calls of a service with a cache: a kept answer, or the flight of equal calls that are under way together."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

from penstock.codec import encode_msgpack
from penstock.core.policy.cache import Cache
from penstock.core.request import ENDED, QUEUED
from penstock.errors import BadResult, ConfigError
from penstock.runtime.call import BoundCall, begin_future
from penstock.runtime.flight import Flight

if TYPE_CHECKING:
    from penstock.runtime.binding import Binding

_LONG = 256  # bytes of a key; longer ones are kept as digests
_NOW = (0.0, 0.0, 0.0, 0.0)


class Sharing:
    """The cache of one service in one runtime."""

    def __init__(self, binding: Binding, policy: Cache) -> None:
        self.binding = binding
        self.policy = policy
        self.kept = policy.state()
        self.flights: dict[Hashable, Flight] = {}

    def key(self, call: BoundCall) -> Hashable | None:
        """What this call has in common with its equals. Raises ConfigError where that cannot be told."""
        args, kwargs, binding = call.args, call.kwargs, self.binding
        name = binding.name
        if self.policy.key is not None:
            key = self.policy.key(*args, **kwargs)
            try:
                hash(key)
            except TypeError as error:
                raise ConfigError(f"{name}: Cache(key=...) gave something that cannot be hashed: {error}") from None
            return key
        if kwargs or len(args) != len(binding.names):
            if not args and kwargs.keys() == binding.name_set:
                args = tuple([kwargs[name] for name in binding.names])
            else:
                bound = binding.service.signature.bind(*args, **kwargs)
                bound.apply_defaults()
                args = tuple(bound.arguments.values())
        try:
            data = encode_msgpack(args)
        except BadResult as error:
            raise ConfigError(f"{name}: its arguments cannot be compared by value, so give Cache(key=...): {error}") from None
        return (blake2b(data, digest_size=32).digest() if len(data) > _LONG else data, *map(type, args))


class SharedCall(BoundCall):
    """What a caller of a service with a cache holds."""

    __slots__ = ("flight", "measured", "timer")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.flight: Flight | None = None
        self.measured: tuple[float, float, float, float] | None = None  # the parts of its time, if it only waited
        self.timer: asyncio.TimerHandle | None = None

    def parts(self) -> tuple[float, float, float, float]:
        return super().parts() if self.measured is None else self.measured

    def start(self) -> Self:
        """Begin now, in a task of its own."""
        if self.begun or self.used:
            return super().start()
        self.used = self.begun = True
        begin_future(self, loop=self.binding.runtime.loop)
        if self.error is not None:
            super().cancel()
        else:
            self.binding.runtime.tasks.start(self)
        return self

    def start_for(self, waiter: Any) -> bool:
        return False  # in a task of its own

    def cancel(self, msg: Any = None) -> bool:
        if self.flight is None:
            return super().cancel(msg)
        if self.request.outcome or self.runner is None:
            return False
        self.runner.cancel(msg)
        return True

    async def _wait_for_answer(self) -> Any:
        return await self._run_here()

    async def _run_here(self) -> Any:
        try:
            if self.error is not None:
                raise self.ordered()
            binding, request = self.binding, self.request
            sharing, runtime = binding.sharing, binding.runtime
            assert sharing is not None
            key = sharing.key(self)
            if key is None or binding.station.draining:
                return await (super()._run_here() if binding.direct else super()._wait_for_answer())
            now = request.arrival = request.submitted = runtime.clock()
            if not request.id:
                request.id = runtime.next_id()
            request.root = self.frame is None or self.frame.request is None
            entry = sharing.kept.get(key, now)
            if entry is not None:
                self.close("ok", "hit", _NOW)
                return entry[0]
            return await self._wait(self._flight(sharing, key))
        finally:
            del self  # what is raised holds this frame, and is held by the call

    def _flight(self, sharing: Sharing, key: Hashable) -> Flight:
        flight = sharing.flights.get(key)
        return flight if flight is not None and flight.takes(self) else Flight(sharing, key, self)

    async def _wait(self, flight: Flight) -> Any:
        runtime = self.binding.runtime
        self.future = runtime.loop.create_future()
        self.runner = asyncio.current_task(runtime.loop)
        self.flight = flight
        self.request.state = QUEUED
        try:
            flight.join(self)
            return await self.future
        except asyncio.CancelledError:
            flight.leave(self, "cancelled")
            raise
        finally:
            self.runner = self.future = self.flight = None
            if self.timer is not None:
                self.timer.cancel()
            del self, flight  # as above; the flight's work holds its error too

    def elapsed(self) -> tuple[float, float, float, float]:
        """The parts of the time so far, of one who only waited."""
        return self.binding.runtime.clock() - self.request.submitted, 0.0, 0.0, 0.0

    def close(self, outcome: str, how: str, parts: tuple[float, float, float, float], error: str = "") -> None:
        """It has ended, with a line of its own in the log."""
        request = self.request
        request.outcome, request.state, self.measured = outcome, ENDED, parts
        parent = "" if self.frame is None or self.frame.request is None else self.frame.request.id
        arrived = request.submitted
        line = (request.id, self.binding.name, request.tenant, outcome, error, arrived, *parts, 0, how, -1, 0, parent)
        self.binding.runtime.log.append(line)
