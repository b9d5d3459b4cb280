"""One service's place in the scheduler: its queue, its replicas, what is in flight, and what has been learned of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from penstock.core.estimate import ServiceTime
from penstock.core.hangups import HangUps
from penstock.core.headroom import headroom_of
from penstock.core.patience import PatienceBook, Sample
from penstock.core.policy.admit import Queue as QueueBound
from penstock.core.policy.batch import Batch, Pricing
from penstock.core.policy.limit import AIMD, AIMDState, Limit, RateState
from penstock.core.policy.order import Order, Priority
from penstock.core.policy.retry import Retry, RetryBudget
from penstock.core.policy.route import Route
from penstock.core.policy.scale import Elastic, Scale
from penstock.core.pool import Amount, Need, PoolState
from penstock.core.replica import Replica
from penstock.core.request import Request, Work
from penstock.core.router import router_of
from penstock.core.targets import Targets, tightest
from penstock.errors import ConfigError


@dataclass(frozen=True, slots=True)
class StationOptions:
    """How a station behaves. `replicas=None`: bodies run in their callers' own tasks, with no slots to wait for."""

    name: str
    replicas: int | None = None
    queue: QueueBound = field(default_factory=QueueBound)
    order: Order = field(default_factory=Priority)
    limits: tuple[Limit, ...] = field(default_factory=lambda: (AIMD(),))
    batch: Batch | None = None
    retry: Retry | None = None
    needs: tuple[tuple[PoolState, Amount], ...] = ()
    scale: Scale | Elastic | None = None
    safe: bool = False
    streams: bool = False
    stage: bool = False  # the executor can hold one full batch ready behind the running one
    route: Route | None = None
    hosts: tuple[str, ...] = ()  # processes or servers that have several replicas each, in order
    slow_start: float = 0.0
    start_timeout: float = 60.0
    progress_timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.start_timeout <= 0 or self.progress_timeout <= 0:
            raise ConfigError(f"{self.name}: start_timeout and progress_timeout must be greater than 0")
        if self.batch is not None and self.batch.max_wait >= self.start_timeout:
            raise ConfigError(
                f"{self.name}: Batch(max_wait={self.batch.max_wait:g}) is not shorter than start_timeout="
                f"{self.start_timeout:g}, so every lone call would time out"
            )
        if self.batch is not None and self.queue.items < self.batch.max_size:
            raise ConfigError(
                f"{self.name}: Queue(items={self.queue.items}) cannot hold one batch of {self.batch.max_size}; "
                "raise items or lower Batch(max_size=...)"
            )
        for pool, amount in self.needs:
            if not callable(amount) and not 0 < amount <= pool.capacity:
                raise ConfigError(f"{self.name}: needs {amount:g} of pool {pool.name!r}, which has {pool.capacity:g}")


_OWED = 16.0  # charged at once, in the unit of costs


class Station:
    """The state of one service. Changed by the scheduler alone; `waiting` and `running` are in order of time."""

    def __init__(self, options: StationOptions) -> None:
        self.options = options
        self.name = options.name
        self.batch = options.batch
        self.direct = options.replicas is None
        self.needs = tuple(Need(n, pool, amount) for n, (pool, amount) in enumerate(options.needs))
        self.variable = any(need.of is not None for need in self.needs)
        self.blocked: Request | None = None  # the first request for which some pool had no room, until it starts or leaves
        self.passed = 0  # how many starts have gone before it since
        self.limits = tuple(limit.state() for limit in options.limits)
        self.rates = tuple(state for state in self.limits if isinstance(state, RateState))  # these hear of starts
        self.adaptive = tuple(state for state in self.limits if isinstance(state, AIMDState))  # and these of ends
        self.targets = Targets(
            tightest([s.policy.ttft for s in self.adaptive]), tightest([s.policy.tpot for s in self.adaptive])
        )
        self.paced = tuple(state for state in self.adaptive if state.policy.tpot is not None)  # and these of items
        self.replicas = [Replica(index) for index in range(options.replicas or 0)]
        self.servers = len(self.replicas)  # without those that leave
        self.scaling = options.scale.state() if options.scale is not None else None
        self.elastic = options.scale.maximum if isinstance(options.scale, Elastic) else 0  # so many, one a call that waits
        self.router = router_of(options)
        self.slots = 1 if self.router is None else self.router.slots  # of one host, which come and go together
        # Replicas that are up and idle; the last one is the warmest.
        self.free: list[int] = [] if self.router is None else self.router  # type: ignore[assignment]
        self.queue = options.order.queue()
        self.waiting: dict[Request, None] = {}
        self.running: dict[Work, None] = {}
        self.latest: dict[object, Request] = {}
        self.headroom = headroom_of(options.order, options.streams, options.replicas)
        self.in_flight = 0
        self.staged = 0
        self.coming = 0  # staged behind a work that has stopped, not yet taken: their place within the limits is kept
        self.starts = 0
        self.since = 0.0  # when the queue ceased to be empty
        self.queued_cost = 0.0
        self.queued_bytes = 0
        self.apart = self.apart_bytes = 0  # staged or waiting for a retry: they may come back to the queue
        self.earliest = math.inf  # a lower bound of the queued deadlines
        self.check_at = math.inf
        self.start_timeout, self.progress_timeout = options.start_timeout, options.progress_timeout
        self.draining = False
        self.broken: BaseException | None = None
        self.owner: Any = None  # opaque: the driver's own record
        self.time = ServiceTime()
        self.pricing = Pricing(self.batch.cost if self.batch else None)
        self.hangups = HangUps(self.answer_seconds)
        self.patience = PatienceBook(self.hangups) if options.queue.patience else None
        self.max_wait = options.start_timeout if options.queue.max_wait is None else options.queue.max_wait
        self.turned_away: tuple[str, float] | None = None  # who was refused for want of patience, and when its turn was
        self.full_items = float(self.batch.max_size if self.batch else 1)
        self.full_cost = 0.0
        self.max_cost = self.batch.max_cost if self.batch else math.inf  # lowered when a batch was too much for memory
        self.retry = RetryBudget(options.retry) if options.retry and options.safe else None
        self.counts: Counter[str] = Counter()
        self.stageable = options.stage and not self.needs and not self.rates
        self.groups = (
            self.batch is None and not self.direct and not self.needs and not options.streams
            and not self.rates and self.router is None
        )  # fmt: skip
        hard = any(state.hard for state in self.limits)
        self.nodes = (
            *((f"{self.name}'s replicas",) if self.replicas else ()),
            *((f"{self.name}'s limit",) if hard else ()),
            *(need.pool.name for need in self.needs),
        )

    def __repr__(self) -> str:
        return f"<Station {self.name} queued={len(self.waiting)} in_flight={self.in_flight}>"

    # What is free

    def ready_at(self, now: float, nested: bool = False) -> float:
        """When limits allow one more start; infinity if only an end can."""
        if self.targets.ttft is not None and self.targets.full and not nested:
            return math.inf
        at, in_flight = now, self.in_flight + self.coming
        for limit in self.limits:
            if in_flight >= limit.n and not (nested and limit.soft):
                ready = limit.ready_at(in_flight, now)
                if ready > at:
                    at = ready
        return at

    def passes(self, request: Request, now: float) -> bool:
        """Whether nobody is before this request, and its place is free: it need not queue if limits and pools allow."""
        if self.direct:
            return not self.waiting or not request.root
        if not self.free or self.waiting or self.batch is not None:
            return False
        return self.headroom is None or not self.headroom.bars(self, request, now)

    def gathers(self, request: Request, now: float) -> bool:
        """Whether one more queued request changes nothing yet: a batch gathers, or all replicas are provided for."""
        batch, queued = self.batch, len(self.waiting)
        if batch is None or queued >= batch.max_size or self.queued_cost >= self.max_cost or self.draining:
            return not self.free and not self.direct and (batch is None or self.staged >= self.servers)
        if not self.free:
            return True
        lead = batch.max_wait + 2 * self.time.seconds(self.queued_cost)
        soon = request.deadline is not None and request.deadline - now < lead
        return queued > 1 and batch.max_wait > 0 and not soon and self.blocked is None

    def host(self, index: int) -> list[Replica]:
        """The replicas that come and go with this one: all slots of its host."""
        first = index - index % self.slots
        return self.replicas[first : first + self.slots]

    def wanted(self, now: float) -> int:
        """How many hosts (of one replica, or of several slots) its rule wants.

        What waits for a limit or a pool while a replica is idle asks for no other.
        """
        assert self.scaling is not None
        delay, queued = 0.0, 0 if self.free else len(self.waiting)
        if queued:
            delay = now - next(iter(self.waiting)).queued - (self.batch.max_wait if self.batch is not None else 0.0)
        busy = sum([replica.work is not None and not replica.leaving for replica in self.replicas])
        return self.scaling.wanted(self.servers // self.slots, busy / self.slots, delay, now, queued)

    def sampled(self) -> bool:
        """Of a body on the loop every start is timed at first, then one in eight: no slot is planned with it."""
        self.starts += 1
        return self.starts < 64 or not self.starts & 7

    def outgrown(self, requests: list[Request]) -> None:
        """These, run together, were too much for the memory of a replica: no batch is that large again."""
        self.max_cost = max(min(self.max_cost, self.pricing.exact(requests) / 2), 1e-9)

    # What is expected

    def round_size(self) -> int:
        """How many requests one round of starts serves: a full batch, or one for each replica."""
        if self.batch is not None:
            return max(1, int(self.full_items))
        return max(1, self.servers or self.in_flight)

    def round_seconds(self) -> float:
        """Predicted seconds of one full start."""
        return self.time.seconds(self.full_cost or self.full_items)

    def answer_seconds(self) -> float:
        """The same until its answer, or the first item of a stream: what callers wait for."""
        return self.targets.usual if self.options.streams else self.round_seconds()

    def patience_of(self, tenant: str, now: float) -> float:
        if self.patience is None:
            return math.inf
        return self.patience.seconds(tenant, now, lambda: self._ages(tenant, now))

    def regret(self, now: float) -> None:
        """Nothing is left to do. If one was refused whose turn would be yet to come, that served nobody, and there is
        time to spare: its tenant's patience is learned anew."""
        if self.turned_away is not None and self.patience is not None:
            tenant, turn = self.turned_away
            self.turned_away = None
            if now < turn:
                self.patience.forget(tenant)

    def _ages(self, tenant: str, now: float) -> Sample:
        """How long this tenant's queued callers have waited: some hundred of them, and how many each stands for."""
        step = 1 + len(self.waiting) // 128
        return [now - r.submitted for r in islice(self.waiting, 0, None, step) if r.tenant == tenant], step

    # What changes with a request

    def enqueue(self, request: Request, now: float) -> None:
        if not self.waiting:
            self.targets.mark = self.since = now
        if self.headroom is not None:
            self.headroom.came(request.tenant, now)
        self.queue.push(request, now)
        request.queued = now
        self.waiting[request] = None
        self.queued_cost += request.cost
        self.queued_bytes += request.size
        if request.deadline is not None and request.deadline < self.earliest:
            self.earliest = request.deadline
        if request.latest is not None:
            self.latest[request.latest] = request

    def dequeued(self, requests: Iterable[Request]) -> None:
        """These have left the order's queue; keep the sums true."""
        waiting, latest = self.waiting, self.latest
        for request in requests:
            del waiting[request]
            self.queued_bytes -= request.size
            self.queued_cost -= request.cost
            if request.latest is not None and latest.get(request.latest) is request:
                del latest[request.latest]
        if not waiting:
            self.queued_cost, self.earliest = 0.0, math.inf

    def charge(self, request: Request, cost: float) -> None:
        """Work was done for this request since it started: its tenant's fair share pays, a little at a time."""
        request.owed += cost
        if request.owed >= _OWED:
            self.settle(request)

    def settle(self, request: Request) -> None:
        self.queue.charge(request, request.owed)
        request.owed = 0.0

    def set_apart(self, requests: list[Request], sign: int) -> None:
        """Keep (or, with -1, give up) these requests' places within the queue's bounds while they are elsewhere."""
        self.apart += sign * len(requests)
        self.apart_bytes += sign * sum([request.size for request in requests])

    def requeue(self, requests: list[Request]) -> None:
        """Put back what was staged, at its old place in the order and in time."""
        for request in requests:
            self.queue.unpop(request)
            self.waiting[request] = None
            self.queued_cost += request.cost
            self.queued_bytes += request.size
            if request.deadline is not None:
                self.earliest = min(self.earliest, request.deadline)
        self.waiting = dict.fromkeys(sorted(self.waiting, key=lambda r: r.queued))
