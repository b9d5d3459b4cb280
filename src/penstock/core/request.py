"""What the core knows of one call, and of one start.

A request ends exactly once (its caller is answered) and, separately, its work stops exactly once (its lease is
returned). Between the two it is ABANDONED: nobody waits for it, but a thread may still be running it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from penstock.core.pool import PoolState
    from penstock.core.station import Station

PENDING: Final = 0
QUEUED: Final = 1
STAGED: Final = 2
RUNNING: Final = 3
BACKOFF: Final = 4
ABANDONED: Final = 5  # from here on nobody waits for it
ENDED: Final = 6

STATE_NAMES: Final = ("pending", "queued", "staged", "running", "backoff", "abandoned", "ended")


class Request:
    """One call of a service, as the scheduler sees it. Times are seconds of the runtime's monotonic clock."""

    __slots__ = (
        "affinity",  # what a sticky route keeps together; set where the route is sticky
        "amounts",  # what it needs alone of each pool; set where needs vary, before it is submitted
        "arrival",
        "attempts",
        "band",
        "cost",
        "deadline",
        "ended",
        "failed_on",  # the replicas of the attempts so far
        "first",
        "held",
        "id",
        "item",
        "key",
        "latest",
        "outcome",
        "owed",
        "priority",
        "progress",
        "queued",
        "rank",
        "released",
        "root",
        "seq",
        "size",
        "started",
        "state",
        "station",
        "submitted",
        "tenant",
        "value",
        "waited",  # seconds before it was submitted, where it could not be heard yet
        "work",
    )

    affinity: Any
    amounts: Sequence[float]

    def __init__(
        self,
        id: str = "",  # noqa: A002 - the field's own name
        tenant: str = "",
        size: int = 0,
        arrival: float = 0.0,
        deadline: float | None = None,
        priority: int = 0,
        cost: float = 1.0,
        value: Any = None,
        key: Any = None,
        latest: Any = None,
        held: tuple[str, ...] = (),
        root: bool = True,
    ) -> None:
        self.item: Any = None  # opaque: the runtime's call
        self.id = id
        self.arrival = arrival  # of the root call: inner calls keep their root's place
        self.deadline = deadline
        self.priority = priority
        self.tenant = tenant
        self.size = size  # bytes
        self.cost = cost  # alone; the batch's cost function decides for many
        self.value = value  # what the batch's cost function sees
        self.key = key  # only like with like in a batch
        self.latest = latest  # key under which a newer request supersedes this one
        self.held = held  # names of the pools that the callers of this call hold
        self.root = root
        self.state = PENDING
        self.outcome = ""
        self.first: float | None = None  # when a stream's first item came; from then on it is not run again
        self.waited = 0.0
        self.attempts = 0
        self.failed_on: tuple[int, ...] = ()
        self.owed = 0.0  # done for it, and not yet charged to its tenant
        self.work: Work | None = None
        self.station: Station | None = None
        self.submitted = self.queued = self.released = self.started = self.ended = 0.0
        self.progress = 0.0  # infinity while a reader, not the body, is what a stream waits for
        self.seq = self.band = 0
        self.rank = 0.0  # what its queue sorts it by, before `seq`

    def __repr__(self) -> str:
        return f"<Request {self.id or self.seq} {STATE_NAMES[self.state]}>"


class Work:
    """One start: requests that run together on one replica, under one lease."""

    __slots__ = (
        "asked",  # the estimates behind the lease, uncorrected; set with it
        "backlog",  # cost of the starts under way when it started, its own included; set where items are streamed
        "cost",
        "early",  # its start goes before those of tenants that hold more than their share
        "lease",
        "live",
        "reason",
        "replica",
        "requests",
        "staged",
        "started",
        "station",
        "stopped",
        "token",
    )

    asked: tuple[float, ...]
    backlog: float

    def __init__(self, station: Station, replica: int, requests: list[Request], reason: str, cost: float) -> None:
        self.station = station
        self.replica = replica
        self.requests = requests
        self.reason = reason  # why the batch was released when it was
        self.cost = cost
        self.lease: tuple[tuple[PoolState, float], ...] = ()
        self.live = len(requests)  # requests whose callers still wait
        self.started = 0.0
        self.early = False
        self.staged = False
        self.stopped = False
        self.token: Any = None  # the executor's own handle

    def __repr__(self) -> str:
        return f"<Work {self.station.name}[{self.replica}] x{len(self.requests)} {self.reason}>"
