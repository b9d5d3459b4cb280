"""Pools and leases: everything that a start takes and its end gives back.

A lease is a vector of (pool, amount), taken in one step when work starts and returned in one step when it has really
stopped. Who may pass whom is decided in `core.lease`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.core.estimate import Correction
from penstock.core.policy.declared import number

if TYPE_CHECKING:
    from penstock.core.request import Request

Amount = float | Callable[..., float]
RECOVERY = 1 / 30  # of a budget that pressure has shrunk, a second


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """A named amount of something that several services share: devices, bytes, connections.

    A service that declares `needs={pool: amount}` takes that amount when a call of it starts, together with
    everything else it needs or not at all. `capacity` and amounts share one unit of your choice. An amount may be a
    function of the call's arguments; of a batched service, of the list of its items, as `Batch(cost=)` is. What is
    larger than the pool is refused with TooLarge; what does not fit now waits, and calls behind it that fit may pass,
    at most 16 of them.
    """

    name: str
    capacity: float

    def __post_init__(self) -> None:
        number(f"Pool({self.name!r}, capacity=...)", self.capacity, above=0, below=math.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Memory(Pool):
    """A budget of bytes that several services share: `needs={memory: bytes}`, or a function that estimates them.

    `size_bytes` fixes the budget. Without it, it is `share` of what `device` ("host" if not given, "cuda:0", ...) has
    free when the runtime starts; `penstock.devices` has the probes and takes more of them. With a `device`, its free
    memory is read once a second, and while less is free than the budget promises, the budget shrinks, before the system
    swaps; estimates are corrected by the peaks that executors measure there. Without one nothing is measured.
    """

    capacity: float = field(init=False, default=0.0)  # 0: to be measured
    size_bytes: int | None = None
    device: str | None = None
    share: float = 0.9

    def __post_init__(self) -> None:
        number(f"Memory({self.name!r}, size_bytes=...)", self.size_bytes, above=0, below=math.inf, optional=True)
        number(f"Memory({self.name!r}, share=...), of what is free", self.share, above=0, most=1)
        object.__setattr__(self, "capacity", float(self.size_bytes or 0))
        if self.size_bytes is None and self.device is None:
            object.__setattr__(self, "device", "host")


class PoolState:
    """What is taken of one pool.

    `effective` is the capacity that pressure has left. While nothing is leased, what fits the capacity may start
    whatever the pressure is: readings that are wrong can be unlearned, and nobody waits for what will never come.
    """

    __slots__ = ("capacity", "device", "effective", "leases", "name", "number", "read_at", "unit", "used")

    def __init__(self, pool: Pool, measured: float = 0.0, number: int = 0) -> None:
        self.name = pool.name
        self.number = number  # of the scheduler's pools, in the order of their making
        self.capacity = self.effective = pool.capacity or measured
        self.device, self.unit = (pool.device, " bytes") if isinstance(pool, Memory) else (None, "")
        self.used = 0.0
        self.leases = 0
        self.read_at = -math.inf

    def fits(self, amount: float) -> bool:
        return self.used + amount <= (self.effective if self.leases else self.capacity) + 1e-9

    def take(self, amount: float) -> None:
        self.used += amount
        self.leases += 1

    def give(self, amount: float) -> None:
        self.leases -= 1
        self.used = self.used - amount if self.leases else 0.0

    def pressed(self, free: float, now: float) -> bool:
        """The device has `free` left, beyond what is to stay free. Returns whether more may start than before.

        The budget promises `effective - used` more; if less is free, it shrinks to `used + free` at once. It comes back
        at a thirtieth of the capacity a second, so that it does not swing with what others allocate and free.
        """
        target = min(self.capacity, self.used + max(0.0, free))
        before = self.effective
        elapsed = now - self.read_at if self.read_at > -math.inf else 0.0
        self.effective = min(target, before + RECOVERY * self.capacity * elapsed)
        self.read_at = now
        return self.effective > before

    def __repr__(self) -> str:
        return f"<Pool {self.name} {self.used:g}/{self.capacity:g}>"


class Need:
    """What each start of one station takes of one pool: a fixed amount, or one that is estimated from its inputs."""

    __slots__ = ("correction", "fixed", "index", "of", "pool")

    def __init__(self, index: int, pool: PoolState, amount: Amount) -> None:
        self.index = index
        self.pool = pool
        self.of = amount if callable(amount) else None
        self.fixed = 0.0 if callable(amount) else float(amount)
        self.correction = Correction()

    def declared(self, requests: Sequence[Request]) -> float:
        """The estimate as the service gives it."""
        if self.of is None:
            return self.fixed
        if len(requests) == 1:
            return requests[0].amounts[self.index]
        try:
            return float(self.of([request.value for request in requests]))
        except Exception:  # it has priced each of them alone; a transition must not fail half-way
            return sum([request.amounts[self.index] for request in requests])

    def amount(self, requests: Sequence[Request]) -> float:
        """What these take, as far as measured peaks have taught; a lone request at most the whole pool, for itself."""
        amount = self.correction.factor * self.declared(requests)
        return amount if len(requests) > 1 else min(amount, self.pool.capacity)


class LockOrder:
    """Refuses nested waits that could deadlock.

    A call that holds pool A and waits for pool B records the edge A -> B. An edge that closes a cycle could end in a
    circular wait, so it is refused at once, whatever the load happens to be (the classic lock-order discipline, as
    in the Linux kernel's lockdep).
    """

    def __init__(self) -> None:
        self.edges: dict[str, dict[str, None]] = {}
        self.seen: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
        self.depths: dict[str, int] = {}  # the longest chain of edges that leads to each

    def cycle(self, held: tuple[str, ...], wanted: tuple[str, ...]) -> list[str] | None:
        """Record every edge held -> wanted; return the chain of the first one that would close a cycle.

        The chain is what is held, in order, from where the circle begins, and ends where it began.
        """
        if (held, wanted) in self.seen:
            return None
        for source in held:
            for target in wanted:
                if target in self.edges.get(source, ()):
                    continue
                chain = self._path(target, source)
                if chain is not None:
                    later = dict.fromkeys(held[held.index(source) + 1 :])
                    between = [node for node in later if node not in wanted and node not in chain]
                    return [source, *between, *chain]
                self.edges.setdefault(source, {})[target] = None
                self._deepen(target, self.depths.get(source, 0) + 1)
        self.seen.add((held, wanted))
        return None

    def place(self, need: Need) -> tuple[int, int]:
        """Where this pool is in the order of all."""
        return self.depths.get(need.pool.name, 0), need.pool.number

    def _deepen(self, node: str, depth: int) -> None:
        if depth > self.depths.get(node, 0):
            self.depths[node] = depth
            for target in self.edges.get(node, ()):
                self._deepen(target, depth + 1)

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
