"""A run as a timeline that Perfetto (https://ui.perfetto.dev) and chrome://tracing show: the Trace Event Format.

One process row a service. In it every call is an asynchronous slice with its parts inside (queued, batched, run,
streamed), every replica a track with its starts, and counters show what waits and runs. The file is a JSON array that
grows with the run: readers of the format do not mind a missing end, so it is good also after a kill.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from penstock.runtime.aside import Aside
from penstock.runtime.log import Entry

if TYPE_CHECKING:
    from penstock.runtime.driver import Runtime

_SAMPLE = 0.05  # seconds between looks at the queues
_PARTS = ("queued", "batched", "run", "streamed")
_SAME = 1e-7  # seconds; the start of a batch is a sum of its calls' parts, and rounded

Event = dict[str, Any]


class Timeline:
    """Writes the timeline of a started runtime to a file while it is open: `with Timeline(runtime, "run.json"):`."""

    def __init__(self, runtime: Runtime, path: str | os.PathLike[str]) -> None:
        self.runtime = runtime
        self.zero = runtime.clock()
        self.file = open(path, "wb", buffering=0)  # noqa: SIM115 - what was written is in the file also after a kill
        self.file.write(b"[\n")
        self.rows: dict[str, int] = {}
        self.tracks: set[tuple[str, int]] = set()
        self.last: dict[tuple[str, int], float] = {}
        self.shown: dict[str, tuple[int, int]] = {}
        self.aside = Aside("penstock-trace", self._group)
        self._timer: asyncio.TimerHandle | None = None
        runtime.log.subscribe(self.aside.read)
        self._sample()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Complete the file."""
        if self._timer is not None:
            self._timer.cancel()
        self.runtime.log.flush()
        self.runtime.log.readers.remove(self.aside.read)
        self.aside.close()
        end = {"name": "end", "ph": "i", "s": "g", "pid": 0, "tid": 0, "ts": self._at(self.runtime.clock())}
        if self.aside.dropped:
            end["args"] = {"calls that are missing here": self.aside.dropped}
        self.file.write(msgspec.json.encode(end) + b"\n]\n")
        self.file.close()

    def _sample(self) -> None:
        """On the loop: what waits and what runs, where that has changed."""
        at = self._at(self.runtime.clock())
        found: list[Event] = []
        for name, station in self.runtime.scheduler.stations.items():
            now = (len(station.waiting) + station.staged, station.in_flight)
            if self.shown.get(name) != now:
                self.shown[name] = now
                args = {"queued": now[0], "in flight": now[1]}
                found.append({"name": "load", "ph": "C", "pid": name, "tid": 0, "ts": at, "args": args})
        if found:
            self.aside.read(found)
        self._timer = self.runtime.loop.call_later(_SAMPLE, self._sample)

    # In the thread

    def _group(self, group: Sequence[Entry | Event]) -> None:
        """Calls that have ended, or counters."""
        events: list[Event] = []
        for item in group:
            if isinstance(item, dict):
                events.append(item)
            else:
                events += self._call(item)
                events += self._start(item)
        self._write(events)

    def _write(self, events: Sequence[Event]) -> None:
        lines = bytearray()
        for event in events:
            name = event["pid"]
            if isinstance(name, str):
                row = self.rows.get(name)
                if row is None:
                    row = self.rows[name] = len(self.rows) + 1
                    lines += _line({"name": "process_name", "ph": "M", "pid": row, "tid": 0, "args": {"name": name}})
                track = (name, event["tid"])
                if event["tid"] and track not in self.tracks:
                    self.tracks.add(track)
                    args = {"name": f"replica {event['tid'] - 1}"}
                    lines += _line({"name": "thread_name", "ph": "M", "pid": row, "tid": event["tid"], "args": args})
                event["pid"] = row
            lines += _line(event)
        self.file.write(lines)

    def _call(self, entry: Entry) -> Iterator[Event]:
        at, parts = entry.arrived, (entry.queued, entry.batched, entry.ran, entry.streamed)
        args: Event = {"id": entry.id, "outcome": entry.outcome}
        args |= {name: value for name in ("error", "tenant", "parent", "released", "items") if (value := getattr(entry, name))}
        common = {"cat": "call", "id": entry.id, "pid": entry.service or "refused", "tid": 0}
        yield {"name": entry.outcome, "ph": "b", "ts": self._at(at), "args": args, **common}
        for name, seconds in zip(_PARTS, parts, strict=True):
            if seconds > 0:
                yield {"name": name, "ph": "b", "ts": self._at(at), **common}
                at += seconds
                yield {"name": name, "ph": "e", "ts": self._at(at), **common}
        yield {"name": entry.outcome, "ph": "e", "ts": self._at(at), **common}

    def _start(self, entry: Entry) -> Iterator[Event]:
        """The batch that this call was in, once, on its replica's track."""
        if entry.replica < 0 or not entry.batch or entry.outcome not in ("ok", "failed"):
            return
        began, track = entry.arrived + entry.queued + entry.batched, (entry.service, entry.replica)
        if abs(self.last.get(track, -1.0) - began) < _SAME:
            return
        self.last[track] = began
        name = "1 call" if entry.batch == 1 else f"{entry.batch} calls"
        seconds = entry.ran + entry.streamed
        yield {
            "name": name,
            "ph": "X",
            "ts": self._at(began),
            "dur": round(seconds * 1e6, 3),
            "pid": entry.service,
            "tid": entry.replica + 1,
            "args": {"calls": entry.batch, "released": entry.released},
        }

    def _at(self, seconds: float) -> float:
        """Microseconds since the timeline began."""
        return round((seconds - self.zero) * 1e6, 3)


def _line(event: Event) -> bytes:
    return msgspec.json.encode(event) + b",\n"
