"""What the server says of itself at /status, for people: `penstock top` draws it.

Counts are since the start, so that a reader forms rates of its own between two readings. Quantiles are exact, over the
latest calls: the log's readers get their groups of durations anyway, and keeping the latest of these groups costs a
hundredth of a microsecond a call.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import msgspec
import psutil

from penstock.executors.process import Processes
from penstock.executors.remote import RemoteExecutor
from penstock.runtime.sizes import usable_cores

if TYPE_CHECKING:
    from penstock.http.metrics import Metrics, Sums
    from penstock.runtime.app import App
    from penstock.runtime.binding import Binding

_KEEP = 4096  # calls
_SECONDS = 10.0  # how far back "the latest calls" go


class Recent:
    """The durations of the latest calls, in the groups in which they came."""

    __slots__ = ("count", "groups")

    def __init__(self) -> None:
        self.groups: deque[tuple[float, list[float]]] = deque()
        self.count = 0

    def add(self, values: list[float], now: float) -> None:
        """Keeps `values` itself."""
        groups = self.groups
        groups.append((now, values))
        self.count += len(values)
        while self.count - len(groups[0][1]) >= _KEEP:
            self.count -= len(groups.popleft()[1])

    def quantiles(self, now: float, *shares: float) -> list[float]:
        """Nearest-rank quantiles of the calls of the last ten seconds; empty if there were none."""
        while self.groups and self.groups[0][0] < now - _SECONDS:
            self.count -= len(self.groups.popleft()[1])
        values = sorted([value for _, group in self.groups for value in group])
        return [values[min(len(values) - 1, int(share * len(values)))] for share in shares] if values else []


class ReplicaStatus(msgspec.Struct):
    """`busy_seconds` is the time in which it has run calls, the running ones included; of several slots, their mean.

    `memory_bytes` is what a child process has resident, `device_bytes` what it uses of its devices, what it has reserved
    there, and the most that it has used.
    `name` and `state` are a remote's: its URL, and serving, tried, ejected or unhealthy, with `why`. `calls` counts its
    ends; `median` is that of its latest calls in seconds, 0 while too few are known.
    """

    up: bool
    busy: bool
    busy_seconds: float
    device: str = ""
    slots: int = 1
    running: int = 0
    memory_bytes: int = 0
    device_bytes: tuple[int, int, int] = (0, 0, 0)
    name: str = ""
    state: str = ""
    why: str = ""
    median: float = 0.0
    ejections: int = 0
    index: int = 0
    leaving: bool = False
    calls: dict[str, int] = msgspec.field(default_factory=dict)


class ServiceStatus(msgspec.Struct):
    """One service. `calls` counts ends by outcome, `starts` batches (or calls that ran alone); latencies in seconds.

    `wanted` replicas there are to be, `ready` ones take work; `change` is what is under way with them, `change_failed` how
    the last change did.
    """

    name: str
    place: str
    queued: int
    queued_bytes: int
    in_flight: int
    staged: int
    limit: float | None
    draining: bool
    broken: str
    replicas: list[ReplicaStatus]
    calls: dict[str, int]
    items: int
    starts: float
    started_calls: float
    released: dict[str, float]
    cached: dict[str, int]
    retries: int = 0
    wanted: int = 0
    ready: int = 0
    change: str = ""
    change_failed: str = ""
    p50: float | None = None
    p99: float | None = None


class PoolStatus(msgspec.Struct):
    """What is leased of one pool, and the services that wait for it."""

    name: str
    capacity: float
    used: float
    waiting: list[str]


class Status(msgspec.Struct):
    """The process and everything in it. `at` is a monotonic clock's, for rates."""

    name: str
    at: float
    uptime: float
    threads: int
    memory_bytes: int
    cpu_seconds: float
    cores: int
    host_memory_bytes: int
    host_memory_free_bytes: int
    loop_blocked: int
    restarts: int
    services: list[ServiceStatus]
    pools: list[PoolStatus]


def status(app: App, metrics: Metrics) -> Status:
    """Everything, now. Call it on the loop, after the log was flushed."""
    runtime, process = metrics.runtime, metrics.process
    scheduler = runtime.scheduler
    now, host = runtime.clock(), psutil.virtual_memory()
    return Status(
        name=app.name,
        at=now,
        uptime=now - metrics.began,
        threads=threading.active_count(),
        memory_bytes=process.memory_info().rss,
        cpu_seconds=sum(process.cpu_times()[:2]),
        cores=usable_cores(),
        host_memory_bytes=host.total,
        host_memory_free_bytes=host.available,
        loop_blocked=runtime.watch.blocks if runtime.watch is not None else 0,
        restarts=runtime.restarts,
        services=[_service(binding, metrics.services.get(binding.name), now) for binding in runtime.bindings.values()],
        pools=[
            PoolStatus(p.name, p.capacity, p.used, [s.name for s in scheduler.line if any(n.pool is p for n in s.needs)])
            for p in scheduler.pools.values()
        ],
    )


def _service(binding: Binding, sums: Sums | None, now: float) -> ServiceStatus:
    seen, state = binding.runtime.snapshot()[binding.name], binding.runtime.replicas.state(binding)
    found = ServiceStatus(
        name=seen.name,
        place=type(binding.place).__name__.lower(),
        queued=seen.queued,
        queued_bytes=seen.queued_bytes,
        in_flight=seen.in_flight,
        staged=seen.staged,
        limit=seen.limit,
        draining=seen.draining,
        broken=seen.broken,
        replicas=_replicas(binding, sums, now),
        calls={} if sums is None else sums.calls,
        items=0 if sums is None else sums.items,
        starts=0.0 if sums is None else sum(sums.sizes.counts),
        started_calls=0.0 if sums is None else sums.sizes.total,
        released={} if sums is None else sums.released,
        cached={} if sums is None else sums.cached,
        retries=binding.station.retry.spent if binding.station.retry is not None else 0,
        wanted=state.wanted,
        ready=state.ready,
        change=state.change,
        change_failed=state.change_failed,
    )
    quantiles = sums.recent.quantiles(now, 0.5, 0.99) if sums is not None else []
    if quantiles:
        found.p50, found.p99 = quantiles
    return found


def _replicas(binding: Binding, sums: Sums | None, now: float) -> list[ReplicaStatus]:
    devices = getattr(binding.place, "device", None) or ("",)
    replicas, size = binding.station.replicas, binding.station.slots
    found: dict[int, ReplicaStatus] = {}
    for start in range(0, len(replicas), size):
        slots, index = replicas[start : start + size], start // size
        if slots[0].vacant:
            continue
        seconds = sum(sums.busy.get(slot.index, 0.0) for slot in slots) if sums is not None else 0.0
        running = [slot.work for slot in slots if slot.work is not None]
        seconds += sum(now - work.started for work in running)
        up, device = any(slot.up for slot in slots), devices[index % len(devices)]
        status = ReplicaStatus(up, bool(running), seconds / size, device, size, len(running), index=index)
        status.leaving = slots[0].leaving
        found[index] = status
    if isinstance(binding.executor, Processes):
        for replica in binding.executor.replicas:
            if replica.child is not None and replica.index in found:
                status = found[replica.index]
                status.memory_bytes, status.device_bytes = replica.child.resident_mib << 20, replica.child.device_bytes
    if isinstance(binding.executor, RemoteExecutor):
        for status, remote in zip(found.values(), binding.executor.states(), strict=True):
            status.name, status.state, status.why = remote.url, remote.state, remote.why
            status.median, status.ejections, status.calls = remote.median, remote.ejections, remote.calls
    return list(found.values())
