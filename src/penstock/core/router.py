"""The free slots of a station whose replicas are told apart: several slots a host, or a route that was asked for.

Stands in for the plain list of free replicas. To the core a slot is a replica (as with Slots): slot i belongs to host
i // slots. Choosing costs one look at each host, whatever the number of slots.

A host that comes back takes its share slowly: of the starts that its route would give it, it takes the fraction
(seconds since) / `slow_start`, spread evenly by carrying the remainder (error diffusion), so that its share only grows.
Where no other host has room it takes them all, since no replica idles while work waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from penstock.core.policy.route import Host, LeastCost, Route, Weighted
from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.core.request import Request, Work
    from penstock.core.station import StationOptions

_FIRST = 0.1  # the least share of a host that has come back


def router_of(options: StationOptions) -> Router | None:
    """Where it matters which replica is next; else any free one is as good, and the warmest best."""
    count, names, route = options.replicas or 0, options.hosts, options.route
    if not count or (route is None and not names):
        return None
    names = names or tuple(map(str, range(count)))
    if isinstance(route, Weighted) and len(route.weights) != len(names):
        raise ConfigError(f"{options.name}: {route!r} has {len(route.weights)} weights for {len(names)} replicas")
    return Router(route or LeastCost(), names, count // len(names), options.slow_start)


class Router:
    """Which slot the next start takes. `names` are the hosts'."""

    __slots__ = ("count", "hosts", "route", "slots", "slow_start", "turn")

    def __init__(self, route: Route, names: tuple[str, ...], slots: int = 1, slow_start: float = 0.0) -> None:
        self.route = route
        self.hosts = [Host(index, name) for index, name in enumerate(names)]
        self.slots = slots
        self.slow_start = slow_start
        self.count = 0  # free slots
        self.turn = 0.0  # the most that a host had spent when it was picked

    # As the station's list of free replicas

    def append(self, index: int) -> None:
        self.host_of(index).free[index] = None
        self.count += 1

    def remove(self, index: int) -> None:
        del self.host_of(index).free[index]
        self.count -= 1

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index in self.host_of(index).free

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        for host in self.hosts:
            yield from host.free

    def host_of(self, index: int) -> Host:
        """The host of a slot; one that was added while the service runs has its number for a name."""
        while index // self.slots >= len(self.hosts):
            self.hosts.append(Host(len(self.hosts), str(len(self.hosts))))
        return self.hosts[index // self.slots]

    # What starts, stops, comes and goes

    def pick(self, request: Request, now: float, random: Random) -> int:
        """The slot that this request starts in (or the batch that it leads); one at least is free."""
        able = [host for host in self.hosts if host.free]
        if len(able) > 1 and request.failed_on:  # it is a retry: elsewhere, if possible
            tried = self._tried(request)
            able = [host for host in able if host.index not in tried] or able
        for host in able:  # one that was full has missed its turns: it does not catch up on them
            host.spent = max(host.spent, self.turn - self._stride(host))
        while True:
            host = able[0] if len(able) == 1 else self.route.pick(able, request, random)
            host.spent += self._stride(host)
            self.turn = max(self.turn, host.spent)
            if len(able) == 1 or not host.lost or self._takes(host, now):
                return next(reversed(host.free))
            able.remove(host)  # its turn has passed

    def elsewhere(self, request: Request, replica: int) -> bool:
        """Whether a request that has just failed on this replica has not tried every host that takes work."""
        tried = (replica // self.slots, *self._tried(request))
        return any(host.up and host.index not in tried for host in self.hosts)

    def _tried(self, request: Request) -> tuple[int, ...]:
        return tuple([replica // self.slots for replica in request.failed_on])

    def _stride(self, host: Host) -> float:
        return self.route.stride(host) if isinstance(self.route, Weighted) else 1.0

    def _takes(self, host: Host, now: float) -> bool:
        """Whether a host that has come back takes this one of the starts that would be its own."""
        share = _FIRST
        if host.up == self.slots:  # else it is being tried
            share = (now - host.since) / self.slow_start if self.slow_start else 1.0
        if share >= 1:
            host.lost = False
            return True
        host.credit += max(share, _FIRST)
        if host.credit < 1:
            return False
        host.credit -= 1
        return True

    def started(self, work: Work) -> None:
        host = self.host_of(work.replica)
        host.running += 1
        host.cost += work.cost

    def stopped(self, work: Work) -> None:
        host = self.host_of(work.replica)
        host.running -= 1
        host.cost = host.cost - work.cost if host.running else 0.0

    def came_up(self, index: int, now: float) -> None:
        """A slot takes work (again); the first of a host that was down begins its slow start."""
        host = self.host_of(index)
        host.up += 1
        if host.lost:
            host.since = now
        if host.up == 1 and host.lost:
            host.credit = 1.0  # so that the first start that would be its own shows whether it is well
            host.spent = max(host.spent, self.turn)

    def went_down(self, index: int) -> None:
        host = self.host_of(index)
        host.up -= 1
        if not host.up:
            host.lost = True
