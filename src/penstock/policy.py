"""The policies: small frozen declarations, each of which answers one question. All of them work together."""

from penstock.core.policy.admit import Latest, Queue
from penstock.core.policy.batch import Batch
from penstock.core.policy.breaker import Breaker
from penstock.core.policy.cache import Cache
from penstock.core.policy.limit import AIMD, Fixed, Rate
from penstock.core.policy.order import EarliestDeadline, FairShare, Fifo, Priority
from penstock.core.policy.retry import Retry
from penstock.core.policy.route import LeastConnections, LeastCost, RoundRobin, Sticky, TwoChoices, Weighted
from penstock.core.policy.scale import Scale
from penstock.core.policy.slots import Slots
from penstock.core.pool import Memory, Pool
from penstock.executors.base import Inline, Process, Thread
from penstock.executors.child.end import END
from penstock.executors.remote_place import Remote

__all__ = [
    "AIMD",
    "END",
    "Batch",
    "Breaker",
    "Cache",
    "EarliestDeadline",
    "FairShare",
    "Fifo",
    "Fixed",
    "Inline",
    "Latest",
    "LeastConnections",
    "LeastCost",
    "Memory",
    "Pool",
    "Priority",
    "Process",
    "Queue",
    "Rate",
    "Remote",
    "Retry",
    "RoundRobin",
    "Scale",
    "Slots",
    "Sticky",
    "Thread",
    "TwoChoices",
    "Weighted",
]
