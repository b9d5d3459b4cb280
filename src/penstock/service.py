"""Services: what users declare and call.

A `Service` is a frozen declaration; calling it gives a `Call`, which the active runtime carries out. The runtime
registers itself here, because this module must not know it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from penstock.context import Frame, frame_var
from penstock.core.policy.admit import Admit
from penstock.core.policy.batch import Batch
from penstock.core.policy.cache import Cache
from penstock.core.policy.declared import number
from penstock.core.policy.limit import Limit
from penstock.core.policy.order import Order
from penstock.core.policy.retry import Retry
from penstock.core.policy.route import Route
from penstock.core.policy.slots import Slots
from penstock.core.pool import Amount, Pool
from penstock.declare import accept, caller_signature, describe, elsewhere, validate
from penstock.errors import ConfigError
from penstock.executors.base import Body, Place
from penstock.executors.remote_place import Remote

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Status = Literal["pending", "queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a call's time went, in seconds: waiting for its turn, for company, running, streaming after the first item."""

    queued: float = 0.0
    batched: float = 0.0
    ran: float = 0.0
    streamed: float = 0.0

    @property
    def total(self) -> float:
        return self.queued + self.batched + self.ran + self.streamed


class Call(Protocol[R_co]):
    """One call of a service: lazy until it is awaited, iterated or started.

    `await` it for its one answer, `async for` over it for its items. It runs in the task that awaits it, under the
    budget that was in force where it was made. `asyncio.gather`, `wait` and `as_completed` start it, and take it as the
    future that it then is.
    """

    @property
    def id(self) -> str: ...
    @property
    def status(self) -> Status: ...
    @property
    def timing(self) -> Timing: ...
    def __await__(self) -> Generator[Any, Any, R_co]: ...
    def __aiter__(self) -> AsyncIterator[R_co]: ...
    def start(self) -> Call[R_co]:
        """Begin now, in a task of its own; await the call later for the answer."""
        ...

    def cancel(self) -> bool:
        """The answer is not wanted any more: whoever awaits it gets CancelledError, and the work below stops.

        False if it had ended before.
        """
        ...

    def on_success(self, callback: Callable[[R_co], object]) -> Call[R_co]:
        """Start, and call `callback(answer)` on the loop when it is there; what it raises is logged, no more."""
        ...

    def on_error(self, callback: Callable[[BaseException], object]) -> Call[R_co]:
        """Start, and call `callback(error)` on the loop if the call fails or is cancelled."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ServiceOptions:
    """What `ps.service(...)` was given; None means the default for the kind of body."""

    batch: Batch | None = None
    slots: Slots | None = None
    admit: tuple[Admit, ...] = ()
    order: Order | None = None
    limit: tuple[Limit, ...] | None = None
    retry: Retry | None = None
    route: Route | None = None
    on: Place | None = None
    needs: Mapping[Pool, Amount] | None = None
    within: float | None = None
    safe: bool | None = None  # None: not said
    start_timeout: float | None = None
    progress_timeout: float | None = None
    size: Callable[..., int] | None = None
    buffer: int = 64
    cache: Cache | None = None


class Service(Generic[P, R]):
    """A function from a request to an answer, or to a stream of them. Made by `ps.service`."""

    def __init__(self, body: Body, options: ServiceOptions) -> None:
        self.body = body
        self.name = body.name
        self.options = options
        self.batched = body.batched
        self.streams = body.streams
        self.is_async = body.is_async
        self.safe = bool(options.safe)
        self.signature = caller_signature(body)
        self.doc = inspect.getdoc(body.target) or ""
        self.__doc__ = self.doc or Service.__doc__
        self.__name__ = body.name
        self.__qualname__ = getattr(body.target, "__qualname__", body.name)
        self.__module__ = body.target.__module__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        return runtime_here(self.name).call(self, args, kwargs)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call from a plain thread; the future has the answer, can be cancelled, and takes callbacks.

        Raises ConfigError on the event loop's own thread, where waiting for it would block the loop for ever.
        """
        return runtime_here(self.name).submit(self, args, kwargs)

    def map(self, items: Iterable[Any], *, concurrency: int = 64, ordered: bool = True) -> Iterator[Future[R]]:
        """Call for each item from a plain thread, at most `concurrency` at once; yields each call's future when done.

        `items` is read only as far ahead as `concurrency`. With `ordered=False` futures come as they finish.
        """
        from penstock.threads import map_futures

        return map_futures(self, items, concurrency, ordered)

    def __repr__(self) -> str:
        return f"<Service {self.name}>"


@overload
def service(target: None = None, /, **options: Any) -> Callable[[Callable[P, Any]], Service[P, Any]]: ...
@overload
def service(target: type, /, *args: Any, **options: Any) -> Service[..., Any]: ...
@overload
def service(target: Callable[P, AsyncIterator[R]], /, **options: Any) -> Service[P, R]: ...
@overload
def service(target: Callable[P, Iterator[R]], /, **options: Any) -> Service[P, R]: ...
@overload
def service(target: Callable[P, Awaitable[R]], /, **options: Any) -> Service[P, R]: ...
@overload
def service(target: Callable[P, R], /, **options: Any) -> Service[P, R]: ...
def service(  # type: ignore[misc]
    target: Any = None,
    /,
    *args: Any,
    name: str | None = None,
    batch: Batch | Slots | None = None,
    admit: Admit | tuple[Admit, ...] = (),
    order: Order | None = None,
    limit: Limit | tuple[Limit, ...] | None = None,
    retry: Retry | None = None,
    route: Route | None = None,
    on: Place | None = None,
    needs: Mapping[Pool, Amount] | None = None,
    within: float | None = None,
    safe: bool | None = None,
    start_timeout: float | None = None,
    progress_timeout: float | None = None,
    size: Callable[..., int] | None = None,
    buffer: int = 64,
    cache: Cache | None = None,
) -> Any:
    """Make a service of a function or a class; as a decorator, or as a call with a class's constructor arguments.

    `async def` runs on the loop, `def` in a thread, generators stream; an instance of a class is a replica. With
    `batch=` the body gets one list per parameter and returns a list, in which an exception fails that item alone;
    callers pass single items; with `batch=Slots(...)` requests join and leave a class that advances in steps. `within`
    bounds every call (seconds), `start_timeout` the wait in the queue, `progress_timeout` the time without an answer
    or a next item, never the length of a stream. `safe=True` declares that a call may be run twice (retries, HTTP
    GET), `safe=False` that a batch may not, even when its process died. `needs` takes amounts of shared pools while a
    call runs: numbers, or functions of its arguments (of a batched service, of the list of its items). `size` gives the
    bytes that a queued call's input holds. `cache` lets equal calls share answers. `route` chooses between replicas
    (`penstock.policy.Sticky` and others). Raises ConfigError for what contradicts itself.
    """
    accept(
        batch=batch,
        admit=admit,
        order=order,
        limit=limit,
        retry=retry,
        route=route,
        on=on,
        needs=needs,
        size=size,
        cache=cache,
    )
    options = ServiceOptions(
        batch=batch if isinstance(batch, Batch) else None,
        slots=batch if isinstance(batch, Slots) else None,
        admit=admit if isinstance(admit, tuple) else (admit,),
        order=order,
        limit=limit if limit is None or isinstance(limit, tuple) else (limit,),
        retry=retry,
        route=route,
        on=on,
        needs=needs,
        within=within,
        safe=safe,
        start_timeout=start_timeout,
        progress_timeout=progress_timeout,
        size=size,
        buffer=buffer,
        cache=cache,
    )
    number("service(within=...)", within, "seconds", above=0, below=math.inf, optional=True)
    number("service(start_timeout=...)", start_timeout, "seconds", above=0, optional=True)
    number("service(progress_timeout=...)", progress_timeout, "seconds", above=0, optional=True)
    if target is None:
        return functools.partial(_make, name=name, options=options)
    return _make(target, *args, name=name, options=options)


def _make(target: Any, /, *args: Any, name: str | None, options: ServiceOptions) -> Service[..., Any]:
    if isinstance(target, Service):
        raise ConfigError(f"{target.name} is a service already")
    body = describe(target, args, name, options.batch is not None, options.slots)
    if isinstance(options.on, Remote):
        body = elsewhere(body)
    validate(body, options)
    return Service(body, options)


class RuntimeLike(Protocol):
    """What a service needs of a runtime."""

    loop: asyncio.AbstractEventLoop

    def clock(self) -> float: ...
    def call(self, service: Service[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[R]: ...
    def submit(self, service: Service[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[R]: ...


# By the thread of their loop: a thread runs one loop at a time, and asking for the thread is a quarter of the price.
_runtimes: dict[int, RuntimeLike] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_runtimes.clear)  # the threads that turned their loops are not there


def register(runtime: RuntimeLike) -> None:
    """Make this the runtime of the current thread's loop, and of threads that run no loop."""
    other = _runtimes.get(get_ident())
    if other is not None and other.loop is runtime.loop:
        raise ConfigError("this event loop has a runtime already; start one Runtime with all services: Runtime(App(a, b))")
    _runtimes[get_ident()] = runtime


def unregister(runtime: RuntimeLike) -> None:
    for thread, active in list(_runtimes.items()):
        if active is runtime:
            del _runtimes[thread]


def runtime_of_loop() -> RuntimeLike | None:
    """The runtime of the loop that runs here, if it has one."""
    here = _runtimes.get(get_ident())
    return here if here is not None and here.loop is asyncio.get_running_loop() else None


def runtime_here(name: str) -> RuntimeLike:
    """The runtime of this loop; of the service that calls; or the one that is active in this process."""
    here = _runtimes.get(get_ident())
    if here is not None:
        return here
    frame: Frame | None = frame_var.get()
    if frame is not None and frame.runtime is not None:
        return frame.runtime  # type: ignore[return-value]
    for runtime in reversed(_runtimes.values()):
        return runtime
    raise ConfigError(
        f"no runtime is active to call {name} in; use `async with penstock.Runtime(app):` around async code, "
        "`with penstock.Runtime(app):` around plain code"
    )
