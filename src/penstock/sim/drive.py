"""The scheduler alone in virtual time: arrivals, service times and callers that leave, on a heap.

For questions of capacity and for worked examples: `Drive` carries out what the scheduler orders, exactly and at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from random import Random

from penstock.core.commands import Command, End, Retire, Revoke, Stage, Start
from penstock.core.request import RUNNING, Request, Work
from penstock.core.scheduler import Scheduler
from penstock.core.station import Station, StationOptions

Then = Callable[[Request], None]


class Drive:
    """`seconds(work)` is how long a work runs."""

    def __init__(self, seconds: Callable[[Work], float], random: Random | None = None) -> None:
        self.seconds = seconds
        self.scheduler = Scheduler(random or Random(0))
        self.now = 0.0
        self.busy: dict[str, float] = {}  # replica-seconds of work that has stopped, by station
        self.works = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._then: dict[Request, Then] = {}
        self._staged: dict[tuple[str, int], Work] = {}

    def add(self, options: StationOptions) -> Station:
        """A station with all its replicas up."""
        station = self.scheduler.add(options)
        for index in range(options.replicas or 0):
            self._apply(self.scheduler.replica_up(station, index, self.now))
        return station

    def up(self, station: Station, index: int) -> None:
        """A replica that was added has loaded."""
        self._apply(self.scheduler.replica_up(station, index, self.now))

    def retire(self, station: Station, index: int) -> None:
        """One replica less, when it has done what it runs."""
        self._apply(self.scheduler.retire(station, index, self.now))

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Call `action` at this time."""
        self._number += 1
        heappush(self._events, (when, self._number, action))

    def submit(self, station: Station, request: Request, patience: float = math.inf, then: Then | None = None) -> Request:
        """A call arrives now; its caller leaves after `patience` seconds. `then(request)` when it has ended."""
        request.arrival = self.now
        if then is not None:
            self._then[request] = then
        commands = self.scheduler.submit(station, request, self.now)
        if station.direct and request.work is not None and Start(request.work) not in commands:
            self._begin(request.work)
        self._apply(commands)
        if patience < math.inf and not request.outcome:
            self.at(self.now + patience, lambda: self.cancel(request))
        return request

    def cancel(self, request: Request) -> None:
        """The caller leaves."""
        if not request.outcome:
            self._apply(self.scheduler.cancel(request, self.now))
            self._ended(request)

    def run(self, until: float = math.inf) -> Drive:
        """Until nothing is left to happen, or until this time."""
        while True:
            wake = self.scheduler.wake_at
            first = self._events[0][0] if self._events else math.inf
            if min(first, wake) > until or (math.isinf(first) and math.isinf(wake)):
                return self
            if first <= wake:
                self.now, _, action = heappop(self._events)
                action()
            else:
                self.now = max(self.now, wake)
                self._apply(self.scheduler.tick(self.now))

    def _apply(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Start):
                self._begin(command.work)
            elif isinstance(command, Stage):
                self._staged[command.work.station.name, command.work.replica] = command.work
            elif isinstance(command, Retire):
                self.scheduler.replica_gone(command.station, command.replica)
            elif isinstance(command, End):
                self._ended(command.request)
            elif isinstance(command, Revoke):
                key = (command.work.station.name, command.work.replica)
                if self._staged.get(key) is command.work:
                    del self._staged[key]
                    self._apply(self.scheduler.revoked(command.work, self.now))

    def _begin(self, work: Work) -> None:
        self.works += 1
        self.at(self.now + self.seconds(work), lambda: self._finish(work))

    def _finish(self, work: Work) -> None:
        name = work.station.name
        self.busy[name] = self.busy.get(name, 0.0) + self.now - work.started
        live = [request for request in work.requests if request.state == RUNNING]
        commands = self.scheduler.finish(work, self.now)
        staged = self._staged.pop((name, work.replica), None)
        self._apply(commands)
        if staged is not None:
            self._begin(staged)
            self._apply(self.scheduler.taken(staged, self.now))
        for request in live:
            self._ended(request)

    def _ended(self, request: Request) -> None:
        then = self._then.pop(request, None)
        if then is not None:
            then(request)
