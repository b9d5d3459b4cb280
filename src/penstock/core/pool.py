"""Pools and leases: everything that a start takes and its end gives back.

A lease is a vector of (pool, amount), taken in one step when work starts and returned in one step when it has really
stopped. Waiters are stations, not requests: a pool that frees up wakes the stations that were blocked on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.core.station import Station


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """A named amount of something that several services share: devices, bytes, connections.

    A service that declares `needs={pool: amount}` takes that amount when a call of it starts, together with
    everything else it needs or not at all. `capacity` and amounts share one unit of your choice.
    """

    name: str
    capacity: float

    def __post_init__(self) -> None:
        if not (self.capacity > 0 and math.isfinite(self.capacity)):
            raise ConfigError(f"Pool({self.name!r}): capacity must be a positive number, not {self.capacity!r}")


class PoolState:
    """What is taken of one pool, and which stations wait for it."""

    __slots__ = ("capacity", "name", "used", "waiters")

    def __init__(self, name: str, capacity: float) -> None:
        self.name = name
        self.capacity = capacity
        self.used = 0.0
        self.waiters: dict[Station, None] = {}

    def fits(self, amount: float) -> bool:
        return self.used + amount <= self.capacity + 1e-9

    def __repr__(self) -> str:
        return f"<Pool {self.name} {self.used:g}/{self.capacity:g}>"


class LockOrder:
    """Refuses nested waits that could deadlock.

    A call that holds pool A and waits for pool B records the edge A -> B. An edge that closes a cycle could end in a
    circular wait, so it is refused at once, whatever the load happens to be (the classic lock-order discipline, as
    in the Linux kernel's lockdep).
    """

    def __init__(self) -> None:
        self.edges: dict[str, dict[str, None]] = {}
        self.seen: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()

    def cycle(self, held: tuple[str, ...], wanted: tuple[str, ...]) -> list[str] | None:
        """Record every edge held -> wanted; return the chain of the first one that would close a cycle."""
        if (held, wanted) in self.seen:
            return None
        for source in held:
            for target in wanted:
                if target in self.edges.get(source, ()):
                    continue
                chain = self._path(target, source)
                if chain is not None:
                    return [source, *chain]
                self.edges.setdefault(source, {})[target] = None
        self.seen.add((held, wanted))
        return None

    def _path(self, start: str, goal: str) -> list[str] | None:
        stack: list[list[str]] = [[start]]
        visited = {start}
        while stack:
            path = stack.pop()
            if path[-1] == goal:
                return path
            for node in self.edges.get(path[-1], ()):
                if node not in visited:
                    visited.add(node)
                    stack.append([*path, node])
        return None
