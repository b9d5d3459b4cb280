"""What changes under a storm: replicas that are added and retired, and memory that somebody else takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.core.commands import Revoke
from penstock.core.pool import PoolState

if TYPE_CHECKING:
    from penstock.sim.storm import Storm


def scale(storm: Storm, _: None) -> None:
    """A replica more, which comes up a little later, or one less."""
    random = storm.random
    station = random.choice([s for s in storm.stations if s.replicas])
    if random.random() < 0.5:
        storm.seen["replica added"] += 1
        index = storm.scheduler.add_replica(station)
        storm.at(storm.now + random.uniform(0.0, 0.2), "restart", (station, index))
        return
    replica = random.choice(station.replicas)
    if station.servers > 1 and not replica.leaving:
        storm.seen["replica retired"] += 1
        staged = storm.staged.get((station.name, replica.index))
        if staged is not None:
            storm.seen["retired with staged work"] += 1
            storm.books.late[staged] = None
        commands = storm.scheduler.retire(station, replica.index, storm.now)
        assert staged is None or any(isinstance(command, Revoke) for command in commands), f"{staged!r} stays"
        storm.apply(commands, f"retire {station.name}[{replica.index}]")


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
