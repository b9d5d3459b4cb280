"""Metrics in the Prometheus text format: a reader of the log, and the schedulers' own counts at the scrape."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import add

import psutil

from penstock.core.snapshot import StationSnapshot
from penstock.http import remotes
from penstock.http.status import Recent
from penstock.runtime import Runtime
from penstock.runtime.log import Entry

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Histogram:
    """Cumulative buckets, as Prometheus counts them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0.0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        self.counts[bisect_left(self.bounds, value)] += weight
        self.total += value * weight

    def add_all(self, values: list[float]) -> None:
        """Sorts `values`, so that a group costs a few searches instead of one for each value."""
        values.sort()
        counts, count, before = self.counts, len(values), 0
        for n, bound in enumerate(self.bounds):
            until = bisect_right(values, bound, before)
            counts[n] += until - before
            before = until
            if until == count:
                break
        counts[-1] += count - before
        self.total += sum(values)

    def lines(self, name: str, labels: str) -> Iterable[str]:
        running = 0.0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            running += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {_number(running)}'
        yield f"{name}_sum{{{labels}}} {self.total:.9g}"
        yield f"{name}_count{{{labels}}} {_number(running)}"


class Sums:
    """What is counted of one service."""

    __slots__ = ("busy", "cached", "calls", "items", "recent", "released", "runs", "sizes", "totals", "waits")

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.waits, self.runs, self.totals = Histogram(_SECONDS), Histogram(_SECONDS), Histogram(_SECONDS)
        self.sizes = Histogram(_SIZES)
        self.released: dict[str, float] = {}
        self.busy: dict[int, float] = {}
        self.cached: dict[str, int] = {}
        self.items = 0
        self.recent = Recent()

    def add(self, entries: Sequence[Entry], now: float) -> None:
        """A group at once, by columns: at full load this is paid for every call."""
        count, calls = len(entries), self.calls
        columns = tuple(zip(*entries, strict=True))
        outcomes, (queued, batched, ran, streamed, sizes, released, replicas, items) = columns[3], columns[6:14]
        for outcome, n in _counted(outcomes):
            calls[outcome] = calls.get(outcome, 0) + n
        waits = list(map(add, queued, batched))
        totals = list(map(add, waits, map(add, ran, streamed)))
        self.totals.add_all(totals)
        self.recent.add(totals, now)
        self.waits.add_all(waits)
        self.items += sum(items)
        if sizes.count(1) == count and replicas.count(-1) == count:  # each ran alone, on the loop
            self.runs.add_all(list(ran))
            self.sizes.add(1, count)
            for reason, n in _counted(released):
                self.released[reason] = self.released.get(reason, 0.0) + n
            return
        for e in entries:
            if e.batch:
                self._start(e)
            elif e.released:
                self.cached[e.released] = self.cached.get(e.released, 0) + 1

    def _start(self, e: Entry) -> None:
        share = 1.0 / e.batch  # each of a batch's calls has a line; together they are one start
        self.runs.add(e.ran, share)
        self.sizes.add(e.batch, share)
        self.released[e.released] = self.released.get(e.released, 0.0) + share
        if e.replica >= 0:
            self.busy[e.replica] = self.busy.get(e.replica, 0.0) + (e.ran + e.streamed) * share


def _counted(column: tuple[str, ...]) -> Iterable[tuple[str, int]]:
    if column.count(column[0]) == len(column):
        return ((column[0], len(column)),)
    return Counter(column).items()


class Metrics:
    """Sums over all calls so far. `read` is a reader of the log."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.services: dict[str, Sums] = {}
        self.process = psutil.Process()
        self.began = runtime.clock()
        self.left: Callable[[], int] | None = None  # how many clients our own server found gone when it accepted them

    def read(self, entries: Sequence[Entry]) -> None:
        groups: dict[str, list[Entry]] = {}
        now = self.runtime.clock()
        for entry in entries:
            name = entry[1]
            if name in groups:
                groups[name].append(entry)
            else:
                groups[name] = [entry]
        for name, group in groups.items():
            sums = self.services.get(name)
            if sums is None:
                sums = self.services[name] = Sums()
            sums.add(group, now)

    def render(self) -> bytes:
        lines: list[str] = []
        line = lines.append

        def family(name: str, kind: str, text: str) -> str:
            line(f"# HELP penstock_{name} {text}")
            line(f"# TYPE penstock_{name} {kind}")
            return f"penstock_{name}"

        kept = self.services.items()
        name = family("calls_total", "counter", "Ended calls by outcome.")
        lines += [f'{name}{{service="{s}",outcome="{o}"}} {n}' for s, m in kept for o, n in m.calls.items()]
        name = family("stream_items_total", "counter", "Items of streams that were read.")
        lines += [f'{name}{{service="{s}"}} {m.items}' for s, m in kept if m.items]
        for label, text, field in (
            ("wait_seconds", "Time queued and waiting for a batch.", "waits"),
            ("run_seconds", "Duration of starts.", "runs"),
            ("call_seconds", "Whole duration of calls.", "totals"),
            ("batch_size", "Calls in one start.", "sizes"),
        ):
            name = family(label, "histogram", text)
            for service, sums in kept:
                lines += getattr(sums, field).lines(name, f'service="{service}"')
        name = family("batches_released_total", "counter", "Starts by why they were released.")
        lines += [f'{name}{{service="{s}",reason="{r}"}} {_number(n)}' for s, m in kept for r, n in m.released.items()]
        name = family("replica_busy_seconds_total", "counter", "Time in which a replica ran calls; its rate is the busy share.")
        lines += [f'{name}{{service="{s}",replica="{i}"}} {n:.9g}' for s, m in kept for i, n in m.busy.items()]
        name = family("cached_calls_total", "counter", "Calls answered from a cache (hit), or by another's work (shared).")
        lines += [f'{name}{{service="{s}",how="{h}"}} {n}' for s, m in kept for h, n in m.cached.items()]
        self._stations(lines, family)
        self._remotes(lines, family)
        self._process(lines, family)
        return ("\n".join(lines) + "\n").encode()

    def _stations(self, lines: list[str], family: Callable[[str, str, str], str]) -> None:
        now = self.runtime.snapshot().values()
        gauges: tuple[tuple[str, str, Callable[[StationSnapshot], float]], ...] = (
            ("queued_calls", "Calls that wait.", lambda s: s.queued),
            ("queued_bytes", "Bytes of the inputs that wait.", lambda s: s.queued_bytes),
            ("in_flight", "Starts that have not stopped.", lambda s: s.in_flight),
            ("limit", "What the limit allows in flight.", lambda s: float("inf") if s.limit is None else s.limit),
        )
        for label, text, read in gauges:
            name = family(label, "gauge", text)
            lines += [f'{name}{{service="{s.name}"}} {_number(read(s))}' for s in now]
        states = [(b.name, self.runtime.replicas.state(b)) for b in self.runtime.bindings.values()]
        name = family("replicas_ready", "gauge", "Replicas that are up.")
        lines += [f'{name}{{service="{s}"}} {state.ready}' for s, state in states]
        name = family("replicas_wanted", "gauge", "Replicas that there are to be.")
        lines += [f'{name}{{service="{s}"}} {state.wanted}' for s, state in states]

    def _remotes(self, lines: list[str], family: Callable[[str, str, str], str]) -> None:
        stations = self.runtime.scheduler.stations.values()
        name = family("retries_total", "counter", "Calls that were run again.")
        lines += [f'{name}{{service="{s.name}"}} {s.retry.spent}' for s in stations if s.retry is not None]
        remotes.render(self.runtime.bindings.values(), lines, family)

    def _process(self, lines: list[str], family: Callable[[str, str, str], str]) -> None:
        watch = self.runtime.watch
        left = 0 if self.left is None else self.left()
        for label, kind, text, value in (
            ("threads", "gauge", "Threads of this process.", threading.active_count()),
            ("memory_bytes", "gauge", "Resident memory of this process.", self.process.memory_info().rss),
            ("cpu_seconds_total", "counter", "Processor time of this process.", sum(self.process.cpu_times()[:2])),
            ("loop_blocked_total", "counter", "How often the event loop stood still.", watch.blocks if watch else 0),
            ("replica_restarts_total", "counter", "Replicas that died.", self.runtime.restarts),
            ("clients_left_unread_total", "counter", "Clients that had gone before they were accepted.", left),
            ("uptime_seconds", "gauge", "Time since the start.", round(self.runtime.clock() - self.began, 3)),
        ):
            lines.append(f"{family(label, kind, text)} {value}")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else f"{value:.9g}"
