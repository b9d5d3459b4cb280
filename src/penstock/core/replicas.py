"""Replicas come up, die, are added and are retired. Called by the scheduler, within its transitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.core.commands import Revoke
from penstock.core.dispatch import dispatch, vacate
from penstock.core.replica import Replica
from penstock.core.station import Station
from penstock.errors import Refused

if TYPE_CHECKING:
    from penstock.core.scheduler import Scheduler


def up(s: Scheduler, station: Station, index: int, now: float) -> None:
    """A replica has loaded; one that was retired meanwhile is not wanted any more."""
    replica = station.replicas[index]
    if replica.leaving:
        return
    station.broken = None
    if not replica.up:
        replica.up = True
        replica.freed = now
        if station.router is not None:
            station.router.came_up(index, now)
        if replica.work is None and replica.staged is None:
            station.free.append(index)
    dispatch(s, station, now)


def down(s: Scheduler, station: Station, index: int, now: float) -> None:
    """A replica died."""
    replica = station.replicas[index]
    if station.router is not None and replica.up:
        station.router.went_down(index)
    replica.up = False
    if index in station.free:
        station.free.remove(index)


def give_up(s: Scheduler, station: Station, error: BaseException, now: float) -> None:
    """No replica will come back: refuse what waits."""
    if any(replica.up for replica in station.replicas):
        return
    station.broken = error
    for request in list(station.waiting):
        s.leave_queue(request, now)
        reason = Refused(f"{station.name} has no replica left that works: {error}", retry_after=5.0)
        s.end(request, "refused", now, reason)


def add(station: Station) -> int:
    """A place for a replica, or for all slots of a host: one that was vacated, or a new one. Returns the first index."""
    size = station.slots
    hosts = (station.host(first) for first in range(0, len(station.replicas), size))
    host = next((host for host in hosts if all(replica.vacant for replica in host)), None)
    if host is None:
        host = [Replica(len(station.replicas) + n) for n in range(size)]
        station.replicas += host
    for replica in host:
        replica.leaving = replica.gone = replica.vacant = False
    station.servers += size
    return host[0].index


def retire(s: Scheduler, station: Station, index: int, now: float) -> None:
    """A replica, with all slots of its host, takes no new work. What it runs may finish; what is staged there comes back."""
    host = [replica for replica in station.host(index) if not replica.leaving]
    for replica in host:
        replica.leaving = True
        station.servers -= 1
        down(s, station, replica.index, now)
        if replica.staged is not None:
            s.out.append(Revoke(replica.staged))
    for replica in host:
        vacate(s, station, replica)


def gone(station: Station, index: int) -> None:
    """A retired replica, with all slots of its host, has been put away: its place may be used again."""
    for replica in station.host(index):
        assert replica.gone, f"{station.name}[{replica.index}] was not retired"
        replica.vacant = True
