"""What an executor is: the place where user code runs.

The scheduler decides *what* starts; an executor starts it, reports what happened, and never decides. Reports are
made on the event loop's thread, exactly one `finished` for every unit of work that was started or taken, and only
once its work has *really* stopped: a thread that outlives its caller still holds its slot until it returns.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from penstock.core.policy.declared import number, whole
from penstock.core.policy.scale import Scale
from penstock.errors import ConfigError
from penstock.executors.remote_place import Remote


@dataclass(frozen=True, slots=True)
class Inline:
    """Run on the event loop. For `async` code; the default for it.

    `replicas` is how many batches of a batched service run at once, or how many instances of a class there are.
    """

    replicas: int | Scale = 1

    def __post_init__(self) -> None:
        _at_least_one("Inline(replicas=...)", self.replicas)


@dataclass(frozen=True, slots=True)
class Thread:
    """Run in threads of this process, never on the loop; the default for plain functions and classes.

    `replicas` threads: for a function as many calls run at once (default: from the machine's cores, but a generator function
    has a thread for each of its streams, up to 1000), for a class each thread has its own instance (default 1).
    `penstock.policy.Scale(1, 8)` lets their number follow the queue, here as in other places.
    """

    replicas: int | Scale | None = None

    def __post_init__(self) -> None:
        _at_least_one("Thread(replicas=...)", 1 if self.replicas is None else self.replicas)


@dataclass(frozen=True, slots=True)
class Process:
    """Run in child processes, one for each replica: for code that holds the GIL, may crash, or needs other packages.

    A replica takes work once its constructor has returned and `warmup`, the arguments of one example call, has run; both
    within `startup_timeout` seconds. One that dies is started again, after growing pauses while it answers nothing; more
    than `max_restarts` failures of it in five minutes, and it is given up. What it ran fails with WorkerLost; but a batch is
    run again in halves, unless `safe=False`, so that only the request that kills it fails. A batch that runs out of memory
    (MemoryError, torch's OutOfMemoryError) is halved as well, and later ones are kept smaller. A replica that makes no
    progress, or gives no sign of life, for the service's `progress_timeout` is killed and replaced; one whose caller has
    left is killed after `kill_after` more seconds, if given.

    `device`: "cuda:0", or a list that the replicas take in turn; a child sees only its own (CUDA_VISIBLE_DEVICES) and reads its
    name there from PENSTOCK_DEVICE. `threads` of numeric libraries (default: cores / replicas) and `cores`, shared out among
    the replicas, are set before anything is imported, as is `env`. `python`: another interpreter or virtual environment; it
    need not have penstock, and the module of the body is all it imports of ours. What children print comes out here, line by
    line, with the replica's name.

    `recycle`: replace a process after so many works, `recycle_bytes`: when it is that large; the new one is ready before
    the old one goes, except on a device, which holds one at a time.

    An async body runs `concurrency` calls at once in each process, as tasks on one loop: for what batches by itself, or mostly
    waits. Each has a slot; whoever is in one when the process dies fails with WorkerLost.

    With `batch=ps.Slots(n)` each replica has n slots, and whoever is in them when it dies fails with WorkerLost; `warmup` is
    what `add` gets after the slot, and runs to its first item. A process that is to be replaced takes nobody in any more
    when its successor has loaded, and goes when those in its slots have ended.
    """

    replicas: int | Scale = 1
    device: str | Sequence[str] | None = None
    threads: int | None = None
    cores: Sequence[int] | None = None
    python: str | os.PathLike[str] | None = None
    env: Mapping[str, str] | None = None
    warmup: tuple[Any, ...] | None = None
    startup_timeout: float = 120.0
    max_restarts: int = 5
    recycle: int | None = None
    recycle_bytes: int | None = None
    kill_after: float | None = None
    concurrency: int = 1

    def __post_init__(self) -> None:
        _at_least_one("Process(replicas=...)", self.replicas)
        for name in ("threads", "recycle", "recycle_bytes"):
            whole(f"Process({name}=...)", getattr(self, name), optional=True)
        whole("Process(concurrency=...)", self.concurrency)
        whole("Process(max_restarts=...)", self.max_restarts, 0)
        number("Process(startup_timeout=...)", self.startup_timeout, "seconds", above=0)
        number("Process(kill_after=...)", self.kill_after, "seconds", least=0, optional=True)
        devices = [self.device] if isinstance(self.device, str) else list(self.device or ())
        if any(not re.fullmatch(r"[a-z]+(:\d+)?", str(device)) for device in devices):
            raise ConfigError(f"Process(device={self.device!r}): such as 'cpu', 'cuda:0', or a list of them")
        object.__setattr__(self, "device", tuple(devices))
        object.__setattr__(self, "cores", tuple(self.cores or ()))
        for core in self.cores or ():
            whole("Process(cores=[...])", core, 0)
        if self.warmup is not None and not isinstance(self.warmup, tuple):
            raise ConfigError("Process(warmup=...): a tuple, the arguments of one example call")


Place = Inline | Thread | Process | Remote


def fewest(replicas: int | Scale) -> int:
    """How many there are at the start."""
    return replicas.minimum if isinstance(replicas, Scale) else replicas


def _at_least_one(what: str, n: int | Scale) -> None:
    whole(what, fewest(n))


class Item(Protocol):
    """One call's payload, opaque to the core; the runtime's `Call` is one."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    context: Context | None

    def remaining(self) -> float | None:
        """Seconds left of the caller's deadline, or None."""
        ...


class Request(Protocol):
    """What executors see of the core's request."""

    item: Any
    id: str


class Work(Protocol):
    """One start: a batch of requests (or a batch of one) on one replica."""

    replica: int
    requests: Sequence[Any]
    early: bool  # its start goes before those of others, where they are worked off in pieces


@dataclass(frozen=True, slots=True)
class Body:
    """The user code behind a service, and how it is called.

    `target` is a function, or a class whose instances are replicas (then `args` and `kwargs` construct one).
    A batched body is called with one list per parameter and returns one list; a streaming body is a generator
    function (sync or async).
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    is_class: bool = False
    is_async: bool = False
    batched: bool = False
    streams: bool = False
    steps: bool = False  # add, step and drop instead of a call: continuous batching

    def load(self) -> Callable[..., Any]:
        """The callable of one replica; constructs it when the target is a class."""
        return self.target(*self.args, **self.kwargs) if self.is_class else self.target


class Host(Protocol):
    """Where an executor reports, always on the event loop's thread."""

    def taken(self, work: Any) -> None:
        """A staged work has been taken by its worker and runs now.

        `finished` of the work before it comes first, in the same turn of the loop: that one does not free the replica.
        """
        ...

    def returned(self, work: Any) -> None:
        """A staged work comes back, never started: its replica died before taking it, or is stopping."""
        ...

    def finished(self, work: Any, results: Sequence[Any], seconds: float | None = None, measured: bool = True) -> None:
        """The work has stopped. One result a request, in order; an exception instance fails that request alone.

        `seconds`: how long the body ran, without the hand-off, where that can be told. `measured=False`: however long it
        took, that says nothing about the service.

        A stream ends with `[None]`. What a cancel stopped early ends with `asyncio.CancelledError` instances.
        """
        ...

    def emitted(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        """One step of a model with slots produced these items, in order, each with its work."""
        ...

    def outgrown(self, work: Any, part: range) -> None:
        """These of the work's requests, run together, were too much for the replica's memory."""
        ...

    def peaked(self, work: Any, peaks: Mapping[str, float]) -> None:
        """The most that this work took of each device ("host", "cuda:0"), in bytes above what its replica holds when idle.

        Reported before `finished`, where the executor can tell it apart; estimates are corrected by it.
        """
        ...

    def called(self, request: Any, alone: bool, name: str, args: Any, kwargs: Any, within: float | None) -> Any:
        """A body in another process calls the service `name`: start that as `request`'s own, and return its future.

        `alone`: the request runs alone; otherwise it is the first of a batch, and its budget is not meant.
        """
        ...

    def produced(self, work: Any, items: Sequence[Any]) -> None:
        """A stream produced these items, in order (streaming work has exactly one request)."""
        ...

    def replica_up(self, replica: int) -> None:
        """A replica has loaded (again) and takes work."""
        ...

    def replica_down(self, replica: int, error: BaseException, others: Sequence[int] = ()) -> None:
        """A replica died or could not load (again, if it was down), and with it `others`, which are of the same process.

        What was staged there is `returned` and what ran is `finished` next.

        It comes up again by itself, unless the error says that it was given up.
        """
        ...


class Executor(Protocol):
    """Runs work on replicas. All methods are called on the event loop's thread.

    `depth` is how many works may be staged at a replica at once. One full batch is enough to keep a replica busy. Only
    where a unit is as short as the hand-off itself (a no-op in a thread) does more depth pay: it divides the switches
    between threads, which are most of the cost.
    """

    depth: int

    async def start(self) -> None:
        """Load every replica; returns when all are up, raises what a constructor raised."""
        ...

    def run(self, work: Any) -> None:
        """Begin this work on replica `work.replica`, which is free."""
        ...

    def stage(self, work: Any) -> None:
        """Hand over a full batch that the replica takes as soon as those before it are done (at most `depth`)."""
        ...

    def revoke(self, work: Any) -> bool:
        """Take a staged work back. False: a worker has taken it already (`taken` was or will be reported)."""
        ...

    def cancel(self, work: Any) -> None:
        """Nobody waits for this running work any more: stop it as early as its kind allows."""
        ...

    def resume(self, work: Any, count: int = 1) -> None:
        """The reader of a stream took `count` items: the producer may go on."""
        ...

    async def stop(self, within: float) -> None:
        """Stop all replicas; what still runs after `within` seconds is abandoned (threads) or killed (processes).

        An abandoned thread still reports `finished` when it returns, if the loop still runs then.
        """
        ...


@runtime_checkable
class Scalable(Protocol):
    """What an executor has whose replicas can be added and put away while it runs."""

    async def grow(self, index: int) -> None:
        """Load one more replica with this index, report `replica_up`, and return; raises what its constructor raised.

        Several may load at once. Indices of replicas that were put away are used again, any other is the next one. A model
        with slots is one replica here, and to the core one for each slot.
        """
        ...

    async def shrink(self, index: int) -> None:
        """Put this replica away: it runs nothing, nothing is staged there, and it gets no more work.

        Does nothing for one that could not be loaded.
        """
        ...
