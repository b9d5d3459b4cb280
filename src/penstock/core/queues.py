"""The order of a queue: tenants over sorted leaves (bands over both are in `core.bands`). Each level has the same operations:

push, remove, peek, pop (charges the tenant), unpop (refunds it), ahead (how many would go first). A leaf is a sorted
list with a moving head, so every operation is a bisection and removal leaves nothing behind.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import Protocol

from penstock.core.request import Request

Key = Callable[[Request], float]

_GONE = (float("-inf"), -1, Request())  # fills popped places, so that the list holds no finished request


class Queue(Protocol):
    def push(self, request: Request, now: float) -> None: ...
    def remove(self, request: Request) -> None: ...
    def peek(self, now: float) -> Request: ...
    def pop(self, now: float) -> Request: ...
    def take(self, count: int, now: float) -> list[Request]: ...
    def unpop(self, request: Request) -> None: ...
    def ahead(self, request: Request) -> int: ...
    def charge(self, request: Request, cost: float) -> None: ...
    def heads(self, now: float) -> Iterator[tuple[Request, float]]: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]: ...


class SortedQueue:
    """Requests by a fixed key, ties by sequence number."""

    __slots__ = ("head", "items", "key")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.items: list[tuple[float, int, Request]] = []
        self.head = 0

    def push(self, request: Request, now: float) -> None:
        items = self.items
        key = request.rank = self.key(request)
        entry = (key, request.seq, request)
        if len(items) == self.head or entry > items[-1]:  # sequence numbers differ, so requests are never compared
            items.append(entry)
        else:
            insort(items, entry, lo=self.head)

    def _index(self, rank: tuple[float, int]) -> int:
        return bisect_left(self.items, rank, lo=self.head)

    def remove(self, request: Request) -> None:
        index = self._index((request.rank, request.seq))
        if self.items[index][2] is not request:
            raise KeyError(request)
        del self.items[index]
        self._compact()

    def peek(self, now: float) -> Request:
        return self.items[self.head][2]

    def pop(self, now: float) -> Request:
        request = self.items[self.head][2]
        self.items[self.head] = _GONE
        self.head += 1
        self._compact()
        return request

    def take(self, count: int, now: float) -> list[Request]:
        """Pop up to `count` at once."""
        head = self.head
        taken = self.items[head : head + count]
        self.items[head : head + count] = [_GONE] * len(taken)
        self.head += len(taken)
        self._compact()
        return [entry[2] for entry in taken]

    def _compact(self) -> None:
        if self.head == len(self.items) or (self.head > 64 and self.head * 2 > len(self.items)):
            del self.items[: self.head]
            self.head = 0

    def unpop(self, request: Request) -> None:
        insort(self.items, (request.rank, request.seq, request), lo=self.head)

    def ahead(self, request: Request) -> int:
        return self._index((self.key(request), request.seq)) - self.head

    def charge(self, request: Request, cost: float) -> None:
        pass

    def heads(self, now: float) -> Iterator[tuple[Request, float]]:
        """The next request; it is nobody else's turn."""
        if self:
            yield self.peek(now), 0.0

    def __len__(self) -> int:
        return len(self.items) - self.head

    def __iter__(self) -> Iterator[Request]:
        return (entry[2] for entry in self.items[self.head :])


class Ledger:
    """Virtual token counters (VTC): how much weighted service each tenant has had.

    Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024: serve the backlogged tenant with the least
    counter; charge cost / weight as work is done; a tenant that becomes backlogged is lifted to the least counter of
    the backlogged ones (or, if there is none, of the last that was served), so that idling earns no credit.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        self.counters: dict[str, float] = {}
        self.floor = 0.0

    def weight(self, tenant: str) -> float:
        return self.weights.get(tenant, self.weights.get("*", 1.0))

    def lift(self, tenant: str, least: float) -> float:
        counter = max(self.counters.get(tenant, 0.0), least)
        self.counters[tenant] = counter
        return counter

    def charge(self, tenant: str, cost: float) -> None:
        self.counters[tenant] = self.counters.get(tenant, self.floor) + cost / self.weight(tenant)

    def forget(self, active: dict[str, SortedQueue], limit: int = 4096) -> None:
        """Drop tenants to whom the floor already gives what their counter would."""
        if len(self.counters) > limit:
            keep = {t: c for t, c in self.counters.items() if t in active or c > self.floor}
            if len(keep) > limit:
                idle = sorted((c, t) for t, c in keep.items() if t not in active)
                for _, tenant in idle[: len(keep) - limit]:
                    del keep[tenant]
            self.counters = keep


class TenantQueue:
    """Fair share: the backlogged tenant with the least counter goes first; within a tenant, its own leaf."""

    def __init__(self, ledger: Ledger, leaf: Callable[[], SortedQueue]) -> None:
        self.ledger = ledger
        self.leaf = leaf
        self.tenants: dict[str, SortedQueue] = {}
        self.heap: list[tuple[float, str]] = []
        self.size = 0

    def push(self, request: Request, now: float) -> None:
        queue = self.tenants.get(request.tenant)
        if queue is None:
            queue = self._activate(request.tenant)
        queue.push(request, now)
        self.size += 1

    def _activate(self, tenant: str) -> SortedQueue:
        least = self.ledger.counters[self._least()] if self.tenants else self.ledger.floor
        queue = self.tenants[tenant] = self.leaf()
        self._ranked(tenant, self.ledger.lift(tenant, least))
        return queue

    def _ranked(self, tenant: str, counter: float) -> None:
        """Keep the heap true; a lone tenant needs none, so it is built when the second one comes."""
        if len(self.tenants) > 2:
            heappush(self.heap, (counter, tenant))
        elif len(self.tenants) == 2:
            self.heap = sorted((self.ledger.counters[t], t) for t in self.tenants)

    def _least(self) -> str:
        """The backlogged tenant with the least counter; stale heap entries are renewed on the way."""
        heap, counters = self.heap, self.ledger.counters
        if len(self.tenants) == 1:
            return next(iter(self.tenants))
        if len(heap) > 2 * len(self.tenants) + 16:
            heap[:] = [(counters[t], t) for t in self.tenants]
            heapify(heap)
        while True:
            counter, tenant = heap[0]
            if tenant not in self.tenants:
                heappop(heap)
            elif counter != counters[tenant]:
                heappop(heap)
                heappush(heap, (counters[tenant], tenant))
            else:
                return tenant

    def peek(self, now: float) -> Request:
        return self.tenants[self._least()].peek(now)

    def pop(self, now: float) -> Request:
        tenant = self._least()
        ledger = self.ledger
        ledger.floor = max(ledger.floor, ledger.counters[tenant])
        request = self.tenants[tenant].pop(now)
        self._shrink(tenant)
        self.charge(request, request.cost)
        return request

    def _shrink(self, tenant: str) -> None:
        self.size -= 1
        if not self.tenants[tenant]:
            del self.tenants[tenant]
            self.ledger.forget(self.tenants)

    def remove(self, request: Request) -> None:
        self.tenants[request.tenant].remove(request)
        self._shrink(request.tenant)

    def unpop(self, request: Request) -> None:
        self.charge(request, -request.cost)
        queue = self.tenants.get(request.tenant)
        if queue is None:
            queue = self.tenants[request.tenant] = self.leaf()
        queue.unpop(request)
        self._ranked(request.tenant, self.ledger.counters[request.tenant])
        self.size += 1

    def charge(self, request: Request, cost: float) -> None:
        tenant = request.tenant
        self.ledger.charge(tenant, cost)
        if len(self.tenants) > 1 and tenant in self.tenants:
            self._ranked(tenant, self.ledger.counters[tenant])

    def heads(self, now: float) -> Iterator[tuple[Request, float]]:
        """Each tenant's next request, in order, and the service that it has had more than the first one's tenant."""
        turns = sorted([(self.ledger.counters[tenant], tenant) for tenant in self.tenants])
        for counter, tenant in turns:
            yield self.tenants[tenant].peek(now), (counter - turns[0][0]) * self.ledger.weight(tenant)

    def take(self, count: int, now: float) -> list[Request]:
        """Pop up to `count` at once; a lone tenant's come in one piece."""
        if len(self.tenants) != 1:
            return [self.pop(now) for _ in range(min(count, self.size))]
        tenant, queue = next(iter(self.tenants.items()))
        ledger = self.ledger
        ledger.floor = max(ledger.floor, ledger.counters[tenant])
        taken = queue.take(count, now)
        self.size -= len(taken)
        if not queue:
            del self.tenants[tenant]
        ledger.charge(tenant, sum([request.cost for request in taken]))
        return taken

    def ahead(self, request: Request) -> int:
        queue = self.tenants.get(request.tenant)
        own = queue.ahead(request) if queue is not None else 0
        if len(self.tenants) == 1 and queue is not None:
            return own
        weight = self.ledger.weight(request.tenant)
        others = sum(self.ledger.weight(t) for t in self.tenants if t != request.tenant)
        return min(self.size, int(own + (own + 1) * others / weight))

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Request]:
        return (request for queue in self.tenants.values() for request in queue)
