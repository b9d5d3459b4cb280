"""What changes under a storm: items of streams, replicas that are added and retired, memory that somebody else takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.core.commands import Revoke
from penstock.core.pool import PoolState
from penstock.core.request import RUNNING, Work

if TYPE_CHECKING:
    from penstock.sim.storm import Storm


def scale(storm: Storm, _: None) -> None:
    """A replica more, which comes up a little later, or one less."""
    random = storm.random
    station = random.choice([s for s in storm.stations if s.replicas])
    if random.random() < 0.5:
        storm.seen["replica added"] += 1
        index, at = storm.scheduler.add_replica(station), storm.now + random.uniform(0.0, 0.2)
        for replica in station.host(index):
            storm.at(at, "restart", (station, replica.index))
        return
    replica = random.choice(station.replicas)
    if station.servers > station.slots and not replica.leaving:
        storm.seen["replica retired"] += 1
        host = station.host(replica.index)
        running = sum(slot.work is not None for slot in host)
        storm.seen["a host is retired while some of its slots run"] += 0 < running < len(host)
        staged = [work for slot in host if (work := storm.staged.get((station.name, slot.index))) is not None]
        storm.seen["retired with staged work"] += bool(staged)
        storm.books.late.update(dict.fromkeys(staged))
        commands = storm.scheduler.retire(station, replica.index, storm.now)
        back = [command.work for command in commands if isinstance(command, Revoke)]
        assert all(work in back for work in staged), f"{staged} stays"
        storm.apply(commands, f"retire {station.name}[{replica.index}]")


def measure(storm: Storm, work: Work) -> None:
    """It took more or less of the device than was estimated, which teaches what the next estimates are worth."""
    ratio = storm.random.choice((0.2, 0.8, 1.0, 1.7, 9.0))
    learning = [need.correction for need in work.station.needs if need.pool.device is not None and work.asked[-1] > 0]
    before = [correction.factor for correction in learning]
    storm.scheduler.peaked(work, {"sim": ratio * work.asked[-1]})
    for old, correction in zip(before, learning, strict=True):
        storm.books.leases.measured(ratio, old, correction.factor)


def press(storm: Storm, _: None) -> None:
    """Somebody else takes of the memory, and gives it back."""
    for pool in storm.scheduler.pools.values():
        if pool.device is not None:
            free = storm.random.uniform(0.0, 1.5) * (pool.capacity - pool.used)
            storm.books.leases.pressed(pool, free, storm.now)
            storm.apply(storm.scheduler.pressure(pool, free, storm.now), f"press {pool.name} {free:g}")
            if pool.effective < pool.capacity:
                storm.seen["pressed"] += 1
                storm.at(storm.now + 3.0, "relief", pool)


def relief(storm: Storm, pool: PoolState) -> None:
    """It is all free again, and comes back slowly."""
    storm.books.leases.pressed(pool, pool.capacity, storm.now)
    storm.apply(storm.scheduler.pressure(pool, pool.capacity, storm.now), f"relief {pool.name}")


def item(storm: Storm, work: Work) -> None:
    """A stream gives an item; now and then its reader is slow to take it."""
    request, station, now = work.requests[0], work.station, storm.now
    if work not in storm.books.running or request.state != RUNNING:
        return
    storm.seen["stream item"] += 1
    before = request.progress
    storm.apply(storm.scheduler.progress(request, now), f"item of {request.id}")
    if before < now and station.paced:
        storm.apply(storm.scheduler.paced(station, 1, now - before, now), "pace")
    cost = 20.0 if request.tenant == "a" else 1.0
    station.charge(request, cost)
    storm.books.produced(request, cost)
    if storm.random.random() < 0.3:
        request.progress = float("inf")
        storm.seen["slow reader"] += 1
