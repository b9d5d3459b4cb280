"""A random set of stations, and random requests for them, from one seed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from penstock.core.policy.admit import Queue
from penstock.core.policy.batch import Batch
from penstock.core.policy.limit import AIMD, Fixed, Limit, Rate
from penstock.core.policy.order import EarliestDeadline, FairShare, Fifo, Order, Priority
from penstock.core.policy.retry import Retry
from penstock.core.policy.route import LeastConnections, LeastCost, RoundRobin, Route, Sticky, TwoChoices, Weighted
from penstock.core.pool import Amount, Memory, Pool, PoolState
from penstock.core.request import Request
from penstock.core.scheduler import Scheduler
from penstock.core.station import Station, StationOptions

CALM = 25  # the first calls, nearly all of one tenant


def padded(items: Any) -> float:
    """Padded cost: count x longest."""
    return float(len(items) * max(items))


def stations(random: Random, scheduler: Scheduler, routes: Random) -> list[Station]:
    """Two to four stations that use every kind of policy between them. `routes` decides about their hosts and targets."""
    shared = scheduler.pool(Pool("shared", random.choice((1, 2, 3))))
    memory = scheduler.pool(Memory("memory", size_bytes=random.choice((16, 40, 100)), device="sim"))
    scheduler.bypass = random.choice((0, 1, 3, 16))
    made = []
    for n in range(random.randint(2, 4)):
        replicas = random.choice((None, 1, 2, 3)) if n else random.choice((1, 2, 3))  # one at least can crash
        route, slots = _route(routes, replicas)
        hosts = tuple(f"h{m}" for m in range(replicas or 0)) if slots > 1 else ()
        if replicas is not None:
            replicas *= slots
        batch = None
        if replicas is not None and random.random() < 0.6:
            batch = Batch(
                max_size=random.choice((1, 2, 4, 8)),
                max_wait=random.choice((0.0, 0.01, 0.05)),
                cost=padded if (costed := random.random() < 0.4) else None,
                max_cost=40.0 if costed else float("inf"),
                key=_key if random.random() < 0.3 else None,
                learn=random.random() < 0.8,
            )
        stage = batch is not None and random.random() < 0.7
        safe = random.random() < 0.5
        retry = Retry(attempts=3, base=random.choice((0.02, 0.3)), reserve=random.choice((0.0, 1.0, 3.0))) if safe else None
        made.append(
            scheduler.add(
                StationOptions(
                    name=f"s{n}",
                    replicas=replicas,
                    queue=Queue(
                        items=(batch.max_size if batch is not None else 2) + random.choice((0, 4, 90, 90)),
                        size_bytes=random.choice((50, 10_000, 10_000)),
                        patience=random.random() < 0.5,
                    ),
                    order=_order(random),
                    limits=_limits(random, routes),
                    batch=batch,
                    retry=retry,
                    needs=() if stage and random.random() < 0.7 else _needs(random, shared, memory),  # those take no stage
                    safe=safe,
                    streams=batch is None and random.random() < 0.5,
                    stage=stage,
                    start_timeout=random.choice((0.3, 2.0, 60.0)),
                    progress_timeout=random.choice((0.3, 2.0, 60.0)),
                    route=route,
                    hosts=hosts,
                    slow_start=routes.choice((0.0, 0.5)),
                )
            )
        )
    return made


def _route(random: Random, hosts: int | None) -> tuple[Route | None, int]:
    """How a station chooses between its hosts, and how many slots each has."""
    if hosts is None or random.random() < 0.5:
        return None, 1
    weighted = Weighted([random.choice((1.0, 3.0)) for _ in range(hosts)])
    route = random.choice((None, LeastCost(), LeastConnections(), RoundRobin(), weighted, TwoChoices(), Sticky()))
    return route, random.choice((1, 2, 4))


def _key(item: Any) -> bool:
    return bool(item % 2)


def _needs(random: Random, shared: PoolState, memory: PoolState) -> tuple[tuple[PoolState, Amount], ...]:
    """None, one or two; of memory as much as the inputs say, or a fixed part."""
    some: list[tuple[PoolState, Amount]] = []
    if random.random() < 0.3:
        some.append((shared, 1.0))
    if random.random() < 0.5:
        some.append((memory, random.choice((padded, sum, 5.0))))
    return tuple(some)


def _order(random: Random) -> Order:
    leaf: Fifo | EarliestDeadline = random.choice((Fifo(), EarliestDeadline(horizon=5.0)))
    fair = FairShare(weights={"a": random.choice((1.0, 3.0))}, then=leaf)
    return random.choice((leaf, fair, fair, fair, Priority(age=0.2, then=fair), Priority(age=1.0, then=leaf), Priority()))


def _limits(random: Random, targets: Random) -> tuple[Limit, ...]:
    some: list[Limit] = []
    if random.random() < 0.5:
        ttft = targets.choice((None, 0.05, 0.5))
        some.append(AIMD(window=0.2, ttft=ttft, tpot=targets.choice((None, 0.01, 0.1))))
    if random.random() < 0.3:
        some.append(Fixed(random.choice((1, 2, 5))))
    if random.random() < 0.2:
        some.append(Rate(per_second=random.choice((50.0, 200.0)), burst=random.choice((1, 3)), min_gap=0.001))
    return tuple(some)


def request(random: Random, station: Station, number: int, now: float, stations: Sequence[Station]) -> Request:
    """One call of this station; some are made by a body of another station, which holds what that one needs."""
    batch = station.batch
    root = random.random() < 0.8
    caller = random.choice(stations)
    value = random.randint(1, 12) if random.random() < 0.97 else 60  # now and then one that can never fit
    made = Request(
        id=f"r{number}",
        arrival=now,
        deadline=now + random.choice((0.01, 0.1, 0.5, 3.0)) if random.random() < 0.4 else None,
        priority=random.choice((0, 0, 0, 1, 3)),
        tenant=random.choice("aaaaaaab" if number < CALM else "aabc"),
        size=random.choice((0, 1, 10, 30)),
        cost=batch.alone(value) if batch is not None else float(value) if station.targets.ttft is not None else 1.0,
        value=value,
        key=batch.key(value) if batch is not None and batch.key is not None else None,
        latest=random.choice(("x", "y")) if random.random() < 0.1 else None,
        root=root,
        held=caller.nodes if not root else (),
    )
    if station.variable:
        made.amounts = [float(need.of([value])) if need.of is not None else 0.0 for need in station.needs]
    made.affinity = made.tenant
    return made
