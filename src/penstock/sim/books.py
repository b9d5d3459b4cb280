"""A storm's own account of what happened, from which the laws are asserted without believing the scheduler.

One end and one stop for each, no expired start, one work a replica, limits and pools kept, the gap and the rate of
starts, the budget of retries, and the bound of fair share.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from graphlib import TopologicalSorter
from itertools import combinations

from penstock.core.headroom import reserve
from penstock.core.policy.limit import FixedState, RateState
from penstock.core.policy.order import FairShare, Priority
from penstock.core.request import (
    ABANDONED,
    BACKOFF,
    ENDED,
    PENDING,
    QUEUED,
    RUNNING,
    STAGED,
    STATE_NAMES,
    Request,
    Work,
)
from penstock.core.station import Station
from penstock.core.targets import GATE
from penstock.sim.leases import Leases

MOVES = {
    *((PENDING, state) for state in (QUEUED, STAGED, RUNNING, ENDED)),
    *((QUEUED, state) for state in (STAGED, RUNNING, ENDED)),
    *((STAGED, state) for state in (QUEUED, RUNNING, ABANDONED, ENDED)),
    *((RUNNING, state) for state in (BACKOFF, ABANDONED, ENDED)),
    *((BACKOFF, state) for state in (QUEUED, STAGED, RUNNING, ENDED)),
    (ABANDONED, ENDED),
}  # seen between two steps, in which a request may move twice


class Books:
    """Counts of one storm."""

    def __init__(self, stations: Sequence[Station], bypass: int = 16) -> None:
        self.running: dict[Work, None] = {}
        self.slots: dict[tuple[str, int], Work] = {}
        self.late: dict[Work, None] = {}  # staged at a replica when it was retired: its worker may yet take it
        self.stops: set[int] = set()
        self.works: list[Work] = []  # keeps ids unique
        self.ends: dict[Request, float] = {}
        self.calls: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.starts: dict[str, deque[float]] = {}
        self.fair = [Fairness(s) for s in stations if _by_turns(s)]
        self.leases = Leases(stations, bypass)
        self.states: dict[Request, int] = {}  # of those that have not ended, as they were last seen
        self.moves: Counter[str] = Counter()
        self.waits: dict[str, set[str]] = {}  # who holds -> what was waited for

    def submitted(self, request: Request) -> None:
        assert request.station is not None
        self.calls[request.station.name] += 1
        self.states[request] = PENDING
        if request.state != ENDED:
            for held in request.held:
                self.waits.setdefault(held, set()).update(request.station.nodes)

    def started(self, work: Work, now: float) -> None:
        """The laws of starting."""
        station = work.station
        if work.replica >= 0:
            key = (station.name, work.replica)
            assert key not in self.slots, f"{key} runs two works"
            assert station.replicas[work.replica].up or work in self.late, f"{key} is down"
            self.slots[key] = work
        for request in work.requests:
            if request.state == RUNNING:
                assert request not in self.ends, f"{request!r} started after its end"
                assert request.deadline is None or request.deadline > now, f"{request!r} had expired when it started"
        assert work not in self.running and id(work) not in self.stops, f"{work!r} started twice"
        self.running[work] = None
        self.works.append(work)
        self._limits(station, work, now)
        for fairness in self.fair:
            if fairness.station is station:
                fairness.started(work)

    def _limits(self, station: Station, work: Work, now: float) -> None:
        for limit in station.limits:
            if isinstance(limit, FixedState):
                count = sum(other.station is station for other in self.running)
                assert count <= limit.n, f"{station.name} runs {count}, its limit is {limit.n}"
            if isinstance(limit, RateState):
                policy = limit.policy
                starts = self.starts.setdefault(station.name, deque(maxlen=policy.burst))
                if starts:
                    assert now - starts[-1] >= policy.min_gap - 1e-9, f"{station.name}: starts {now - starts[-1]} s apart"
                if len(starts) == policy.burst:
                    assert now - starts[0] >= limit.interval - 1e-9, f"{station.name} starts too often"
                starts.append(now)
        if station.headroom is not None and work.requests[0].root:
            self._reserve(station, work.requests[0].tenant)
        if station.targets.time.known and not station.needs:
            self._targets(station, work, now)
        self.leases.started(work, list(self.running), now)

    def _reserve(self, station: Station, tenant: str) -> None:
        """A tenant above its share leaves some slots to others who are there."""
        order = station.options.order
        fair = order.then if isinstance(order, Priority) else order
        assert isinstance(fair, FairShare)
        weight = {each: fair.weights.get(each, 1.0) for each in "abc"}
        held = Counter(work.requests[0].tenant for work in self.running if work.station is station)
        slots = len(station.free) + station.in_flight
        there = {tenant, *held, *(request.tenant for request in station.waiting)}
        above = held[tenant] * sum(weight[each] for each in sorted(there)) > slots * weight[tenant] + 1e-9
        if above and len(there) > 1 and slots >= 4:
            kept = max(1, slots // 16)
            free = slots - held.total()  # before those that start after this one in the same transition
            assert free >= kept, f"{station.name}: {tenant!r} holds {held} and takes the last"

    def _targets(self, station: Station, work: Work, now: float) -> None:
        """Nobody starts into a backlog that is long enough, and nobody too late while another waits who would be in time."""
        targets, request, ttft = station.targets, work.requests[0], station.targets.ttft
        if ttft is None or (station.direct and not request.root):
            return
        before = work.backlog - work.cost
        assert before < 1e-9 or targets.time.seconds(before) <= GATE * ttft, f"{request!r} starts behind {before:g}"

        def late(other: Request) -> bool:
            first = now + targets.time.seconds(before + other.cost)
            return other.root and first > other.submitted + ttft + 1e-9

        leaving = station.patience is not None and station.patience.leaving
        if late(request) and not leaving and not work.early:
            able = [other for other in station.waiting if other.deadline is None and not late(other)]
            assert not able, f"{request!r} starts too late, and {able} would be in time"

    def produced(self, request: Request, cost: float) -> None:
        """Work was done for a request that runs, and charged."""
        for fairness in self.fair:
            if fairness.station is request.station:
                fairness.produced_more(request, cost)

    def stopped(self, work: Work) -> None:
        assert work in self.running and id(work) not in self.stops, f"{work!r} stopped twice"
        self.stops.add(id(work))
        del self.running[work]
        self.slots.pop((work.station.name, work.replica), None)

    def retried(self, request: Request) -> None:
        station = request.station
        assert station is not None and station.options.retry is not None and station.options.safe
        assert request.first is None, f"{request!r} is run again after its first output"
        policy, name = station.options.retry, station.name
        self.retries[name] += 1
        allowed = policy.reserve + policy.budget * self.calls[name]
        assert self.retries[name] <= allowed + 1e-9, f"{name}: {self.retries[name]} retries of {self.calls[name]} calls"
        assert request.attempts < policy.attempts, f"{request!r}: attempt {request.attempts + 1}"

    def ended(self, request: Request) -> None:
        assert request not in self.ends, f"{request!r} ended twice"
        assert request.outcome, f"{request!r} has no outcome"
        self.ends[request] = request.ended

    def look(self, now: float) -> None:
        """After every step: who has moved, and who is backlogged."""
        moved = [(request, old) for request, old in self.states.items() if request.state != old]
        for request, old in moved:
            assert (old, request.state) in MOVES, f"{request!r} was {STATE_NAMES[old]}"
            self.moves[f"{STATE_NAMES[old]} -> {STATE_NAMES[request.state]}"] += 1
            self.states[request] = request.state
            if request.state == ENDED:
                del self.states[request]
        for fairness in self.fair:
            fairness.look()
        self.leases.look(now)

    def close(self, requests: Sequence[Request], by: float | None) -> None:
        """At the end: everyone was answered, once, and (when nobody shut down) in bounded time."""
        for request in requests:
            assert request.state == ENDED and request in self.ends, f"{request!r} never ended"
            assert by is None or self.ends[request] < by, f"{request!r} starved"
        assert not self.running and not self.slots, "work was forgotten"
        TopologicalSorter(self.waits).prepare()  # raises CycleError: a circle of waiting was let in


def _by_turns(station: Station) -> bool:
    """Whether every start here takes the fair order's next ones, as it is reported.

    Nested calls of a direct station pass its queue, a batch by cost or key is filled with what is like its first, and a
    staged one was chosen earlier.
    """
    batch = station.batch
    plain = batch is None or (batch.cost is None and batch.key is None and not station.options.stage)
    plain = plain and not station.variable  # small ones pass large ones
    return isinstance(station.options.order, FairShare) and plain and not station.direct


class Fairness:
    """Between two tenants that stay backlogged, weighted service differs by at most twice the largest cost / weight.

    Backlogged with what cannot be late, that is: late calls go last, whoever's they are. What is charged as it is produced
    can be weighed only at a tenant's next start, so the most between two of its starts is added, and what is not yet
    settled (Sheng et al., Fairness in serving large language models, OSDI 2024: what runs at once bounds the difference).
    """

    def __init__(self, station: Station) -> None:
        assert isinstance(station.options.order, FairShare)
        self.station = station
        self.weights = station.options.order.weights
        self.served: Counter[str] = Counter()
        self.largest = self.dearest = 0.0
        self.produced: Counter[str] = Counter()  # since the tenant's last start
        self.most = self.unsettled = 0.0
        self.since: dict[tuple[str, str], float] = {}

    def started(self, work: Work) -> None:
        for request in work.requests:
            share = request.cost / self.weights.get(request.tenant, 1.0)
            self.served[request.tenant] += share  # type: ignore[assignment]
            self.largest = max(self.largest, share)
            self.dearest = max(self.dearest, self.station.full_cost)
            self.produced[request.tenant] = 0

    def produced_more(self, request: Request, cost: float) -> None:
        share = cost / self.weights.get(request.tenant, 1.0)
        self.served[request.tenant] += share  # type: ignore[assignment]
        self.produced[request.tenant] += share  # type: ignore[assignment]
        self.most = max(self.most, self.produced[request.tenant])
        owed = sum(each.owed / self.weights.get(each.tenant, 1.0) for work in self.station.running for each in work.requests)
        self.unsettled = max(self.unsettled, owed)

    def look(self) -> None:
        leaving = self.station.patience is not None and self.station.patience.leaving
        waiting = (
            []
            if leaving or self.station.targets.ttft is not None
            else [request for request in self.station.waiting if request.deadline is None]
        )
        backlogged = sorted({request.tenant for request in waiting})
        pairs = list(combinations(backlogged, 2))
        for pair in [pair for pair in self.since if pair not in pairs]:
            del self.since[pair]
        for pair in pairs:
            difference = self.served[pair[0]] - self.served[pair[1]]
            drift = abs(difference - self.since.setdefault(pair, difference))
            early = reserve(len(self.station.replicas)) * self.dearest / min(self.weights.get(t, 1.0) for t in pair)
            bound = 2 * (self.largest + self.most + self.unsettled) + early * (self.station.headroom is not None)
            assert drift <= bound + 1e-9, f"{self.station.name}: {pair} are {drift:g} apart"
