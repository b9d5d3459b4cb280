"""Strict priority bands with ageing, over tenants or a sorted leaf."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

from penstock.core.queues import SortedQueue, TenantQueue
from penstock.core.request import QUEUED, Request


class BandQueue:
    """Strict bands, the smallest first; a request moves up one band for each `age` seconds it has waited.

    Promotion ends at the most urgent band that was ever used, so that within it the inner order still decides: every
    request reaches that band, and inside it nothing starves.
    """

    def __init__(self, age: float, inner: Callable[[], TenantQueue | SortedQueue]) -> None:
        self.age = age
        self.inner = inner
        self.bands: dict[int, TenantQueue | SortedQueue] = {}
        self.order: list[int] = []
        self.due: list[tuple[float, int, Request]] = []
        self.size = 0
        self.top: int | None = None

    def push(self, request: Request, now: float) -> None:
        band = request.band = request.priority
        if self.top is None or band < self.top:
            self.top = band
            for waiting in self:
                heappush(self.due, (max(now, waiting.submitted) + self.age, waiting.seq, waiting))
        queue = self.bands.get(band)
        (self._into(band) if queue is None else queue).push(request, now)
        self.size += 1
        if band != self.top:
            self._schedule(request, now + self.age)

    def _schedule(self, request: Request, at: float) -> None:
        if self.top is not None and request.band > self.top:
            heappush(self.due, (at, request.seq, request))
            if len(self.due) > 2 * self.size + 64:
                self.due = [entry for entry in self.due if self._waits(entry[2])]
                heapify(self.due)

    def _waits(self, request: Request) -> bool:
        return request.state == QUEUED and request.band in self.bands

    def _into(self, band: int) -> TenantQueue | SortedQueue:
        queue = self.bands.get(band)
        if queue is None:
            queue = self.bands[band] = self.inner()
            insort(self.order, band)
        return queue

    def _promote(self, now: float) -> None:
        due = self.due
        while due and due[0][0] <= now:
            at, _, request = heappop(due)
            if not self._waits(request) or self.top is None or request.band <= self.top:
                continue
            self._take(request)
            request.band -= 1
            self._into(request.band).push(request, now)
            self._schedule(request, at + self.age)

    def _take(self, request: Request) -> None:
        queue = self.bands[request.band]
        queue.remove(request)
        self._drop_if_empty(request.band, queue)

    def _drop_if_empty(self, band: int, queue: TenantQueue | SortedQueue) -> None:
        if not queue and len(self.order) > 1:
            del self.bands[band]
            self.order.remove(band)

    def peek(self, now: float) -> Request:
        if self.due:
            self._promote(now)
        return next(self.bands[band] for band in self.order if self.bands[band]).peek(now)

    def pop(self, now: float) -> Request:
        if self.due:
            self._promote(now)
        for band in self.order:
            queue = self.bands[band]
            if queue:
                request = queue.pop(now)
                self._drop_if_empty(band, queue)
                self.size -= 1
                return request
        raise IndexError("pop from an empty queue")

    def take(self, count: int, now: float) -> list[Request]:
        """Pop up to `count` at once; from a lone band in one piece."""
        if self.due:
            self._promote(now)
        if len(self.order) != 1:
            return [self.pop(now) for _ in range(min(count, self.size))]
        taken = self.bands[self.order[0]].take(count, now)
        self.size -= len(taken)
        return taken

    def remove(self, request: Request) -> None:
        self._take(request)
        self.size -= 1

    def unpop(self, request: Request) -> None:
        self._into(request.band).unpop(request)
        self.size += 1
        if self.top is not None and request.band > self.top:
            self._schedule(request, request.submitted + (request.priority - request.band + 1) * self.age)

    def charge(self, request: Request, cost: float) -> None:
        queue = self.bands.get(request.band)
        if queue is None:
            queue = self.inner()
        queue.charge(request, cost)

    def heads(self, now: float) -> Iterator[tuple[Request, float]]:
        """The same of each band, in order."""
        if self.due:
            self._promote(now)
        for band in self.order:
            yield from self.bands[band].heads(now)

    def ahead(self, request: Request) -> int:
        band = request.priority
        count = 0
        for other in self.order:
            if other < band:
                count += len(self.bands[other])
            elif other == band:
                count += self.bands[other].ahead(request)
        return count

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Request]:
        return (request for band in self.order for request in self.bands[band])
