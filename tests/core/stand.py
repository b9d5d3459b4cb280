"""A scheduler with one station, and short names for what tests do to it."""

from __future__ import annotations

from typing import Any

from penstock.core.check import check
from penstock.core.commands import End, Start
from penstock.core.request import Request, Work
from penstock.core.scheduler import Scheduler
from penstock.core.station import Station, StationOptions


class Stand:
    """One station; its replicas are up. `started` are the works that run, in order."""

    def __init__(self, replicas: int | None = 1, **options: Any) -> None:
        self.scheduler = Scheduler()
        self.now = 0.0
        self.started: list[Work] = []
        self.errors: dict[Request, Exception] = {}
        self.station = self.add("model", replicas, **options)

    def add(self, name: str, replicas: int | None = 1, **options: Any) -> Station:
        station = self.scheduler.add(StationOptions(name, replicas=replicas, **options))
        for index in range(replicas or 0):
            self.do(self.scheduler.replica_up(station, index, self.now))
        return station

    def do(self, commands: Any) -> None:
        for command in commands:
            if isinstance(command, Start):
                self.started.append(command.work)
            elif isinstance(command, End):
                self.errors[command.request] = command.error
        check(self.scheduler, self.now)

    def submit(self, station: Station | None = None, **fields: Any) -> Request:
        amounts = fields.pop("amounts", None)
        request = Request(arrival=self.now, **fields)
        if amounts is not None:
            request.amounts = amounts
        commands = self.scheduler.submit(station or self.station, request, self.now)
        self.do(commands)
        if (station or self.station).direct and request.work is not None and Start(request.work) not in commands:
            self.started.append(request.work)
        return request

    def finish(self, after: float = 0.0, error: Exception | None = None) -> Work:
        """The oldest running work stops."""
        self.now += after
        work = self.started.pop(0)
        self.do(self.scheduler.finish(work, self.now, None if error is None else [error] * len(work.requests)))
        return work

    def to(self, now: float) -> None:
        """Time passes, and every timer fires when it is due."""
        while self.scheduler.wake_at <= now:
            self.now = max(self.now, self.scheduler.wake_at)
            self.do(self.scheduler.tick(self.now))
        self.now = now

    def know(self, seconds: float, times: int = 4) -> None:
        """The station learns that a start takes this long."""
        for _ in range(times):
            self.submit()
            self.finish(seconds)
