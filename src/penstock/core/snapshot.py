"""What an observer may see of a station: frozen numbers, taken between two transitions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.core.station import Station


@dataclass(frozen=True, slots=True)
class StationSnapshot:
    """One service, now. `limit` is None while nothing limits what is in flight; seconds are fitted, costs as declared."""

    name: str
    queued: int
    queued_bytes: int
    in_flight: int
    staged: int
    replicas: int
    replicas_up: int
    busy: tuple[bool, ...]
    limit: float | None
    seconds_fixed: float
    seconds_per_cost: float
    draining: bool
    broken: str
    outcomes: dict[str, int]


def snapshot(station: Station) -> StationSnapshot:
    """The station's state as plain values."""
    limits = [state.n for state in station.limits if 0 < state.n < math.inf]  # 0: a rate, which bounds no number
    return StationSnapshot(
        name=station.name,
        queued=len(station.waiting),
        queued_bytes=station.queued_bytes,
        in_flight=station.in_flight,
        staged=station.staged,
        replicas=station.servers,
        replicas_up=sum(replica.up for replica in station.replicas),
        busy=tuple(replica.work is not None for replica in station.replicas),
        limit=min(limits, default=None),
        seconds_fixed=station.time.a,
        seconds_per_cost=station.time.b,
        draining=station.draining,
        broken=str(station.broken or ""),
        outcomes=dict(station.counts),
    )
