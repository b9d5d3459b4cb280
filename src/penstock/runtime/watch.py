"""The watchdog of the event loop: a thread that notices when the loop stands still, and says where.

Every call suffers while one body blocks the loop, so a block of more than 50 ms is reported once for each place, with
the service, the file and line, and what to do; all are counted. It also passes on the advice of thread executors
whose threads the GIL serialises, and says where calls queue for threads that only wait themselves.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from penstock.declare import call_of
from penstock.executors.base import Thread

if TYPE_CHECKING:
    from penstock.runtime.binding import Binding
    from penstock.runtime.driver import Runtime
    from penstock.service import Service

BLOCKED = 0.05  # seconds
_BEAT = 0.025
_IDLE_BEAT = 0.5
_LINGERS = 1.0  # seconds without a call after which it beats as for an idle loop, and waits to be woken
_STANDS = 3.0  # seconds that all threads of a service wait while calls queue for them
_IDLE_CORE = 0.2  # cores that this process uses meanwhile, at the most
# Where the loop's thread is when it runs nothing: asyncio waits in its selector, uvloop below the runner.
_IDLE = ("/selectors.py", "/asyncio/runners.py", "/asyncio/base_events.py")

logger = logging.getLogger("penstock")


class Watch:
    """Watches one runtime's loop. `blocks` counts how often it stood still, `blocked_seconds` for how long."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.blocks = 0
        self.blocked_seconds = 0.0
        self.places: set[tuple[str, int]] = set()
        self._codes: dict[CodeType, str] = {}
        self._sources: dict[str, str] = {}
        self._full: dict[Binding, tuple[float, float]] = {}  # since when, and what of the processor was used until then
        self._stop = threading.Event()
        self._beat = threading.Event()
        self._wake = threading.Event()
        self._until = 0.0  # when it falls asleep, if nothing runs
        self._loop_thread = 0
        self._thread: threading.Thread | None = None

    def know(self, service: Service[..., Any]) -> None:
        """Recognise this service's body on the loop's stack."""
        code = getattr(call_of(service.body), "__code__", None)
        if code is not None:
            self._codes[code] = service.name
            self._sources[service.name] = f" at {code.co_filename}:{code.co_firstlineno}"

    def start(self) -> None:
        self._loop_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="penstock-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()

    def wake(self) -> None:
        """A call begins on an idle loop, and may be the one that blocks it."""
        self.runtime.unwatched = None
        self._wake.set()

    def _rested(self) -> bool:
        """Wait until a beat is due; False if it is the end. Beats are slow while nothing runs, until a call begins."""
        now = time.monotonic()
        if self._wake.is_set() or self.runtime.busy_hint():
            self._wake.clear()
            self._until = now + _LINGERS
        if now < self._until:
            return not self._stop.wait(_BEAT)
        self.runtime.unwatched = self.wake
        if not self.runtime.busy_hint():  # else a call began just before it could have woken this
            self._wake.wait(_IDLE_BEAT)
        self.runtime.unwatched = None
        return not self._stop.is_set()

    def _run(self) -> None:
        loop = self.runtime.loop
        while self._rested():
            self._beat.clear()
            sent = time.monotonic()
            try:
                loop.call_soon_threadsafe(self._beat.set)
            except RuntimeError:
                return  # the loop is closed
            if self._beat.wait(BLOCKED):
                self._advise()
                continue
            frame = sys._current_frames().get(self._loop_thread)
            idle = frame is None or frame.f_code.co_filename.endswith(_IDLE)
            place = self._place(frame)
            del frame
            while not (beaten := self._beat.wait(1.0)) and not self._stop.is_set():
                pass
            if beaten or self._beat.wait(BLOCKED):  # a loop that has ended beats no more, and stood still for nobody
                self._report(None if idle else place, time.monotonic() - sent)

    def _place(self, frame: FrameType | None) -> tuple[str, str, int]:
        """The innermost frame of user code, and the service whose body is on the stack."""
        service, where = "", ("", 0)
        while frame is not None:
            name = frame.f_code.co_filename
            if frame.f_code in self._codes:
                service = self._codes[frame.f_code]
                if not where[0]:
                    where = (name, frame.f_lineno)
                break
            if not where[0] and not _machinery(name):
                where = (name, frame.f_lineno)
            frame = frame.f_back
        return service, *where

    def _report(self, place: tuple[str, str, int] | None, seconds: float) -> None:
        self.blocks += 1
        self.blocked_seconds += seconds
        if place is None:
            return  # it ran nothing: the machine is busy, and no code of the user's is to blame
        service, file, line = place
        if (file, line) in self.places or len(self.places) > 1000:
            return
        self.places.add((file, line))
        logger.warning(
            "the event loop stood still for %.0f ms%s%s; every call waits meanwhile: use `def` instead of `async def` "
            "(it runs in a thread), on=penstock.Process() for Python code that computes, or await what blocks",
            seconds * 1e3,
            f" in service {service!r}" if service else "",
            f" at {file}:{line}" if file else "",
        )

    def _advise(self) -> None:
        for binding in list(self.runtime.bindings.values()):
            self._advise_threads(binding)
            bound = getattr(binding.executor, "gil_bound", None)
            if bound is not None and ("gil", id(binding)) not in self.places and bound():
                self.places.add(("gil", id(binding)))
                replicas = len(binding.station.replicas)
                logger.warning(
                    "the threads of service %r%s wait for each other: its Python code holds the GIL, so %d threads do the "
                    "work of one; use on=penstock.Process(replicas=%d)",
                    binding.name,
                    self._sources.get(binding.name, ""),
                    replicas,
                    replicas,
                )

    def _advise_threads(self, binding: Binding) -> None:
        """Of a function whose threads are as many as the machine's table says: whether there might be more."""
        station, full, now = binding.station, self._full, (time.monotonic(), time.process_time())
        default = binding.place == Thread() and station.groups and not binding.service.body.is_class
        if not default or station.free or not station.waiting or ("threads", id(binding)) in self.places:
            full.pop(binding, None)
            return
        at, used = full.setdefault(binding, now)
        if now[0] - at < _STANDS:
            return
        del full[binding]
        if now[1] - used <= _IDLE_CORE * (now[0] - at):
            self.places.add(("threads", id(binding)))
            logger.warning(
                "service %r%s: its %d threads (the default of this machine) only wait, and %d calls wait for them; if what "
                "they wait for serves more at once, say how many: on=penstock.Thread(%d)",
                binding.name,
                self._sources.get(binding.name, ""),
                station.servers,
                len(station.waiting),
                8 * station.servers,
            )


def _machinery(filename: str) -> bool:
    return "/asyncio/" in filename or "/penstock/" in filename or filename.startswith("<") or "/threading.py" in filename
