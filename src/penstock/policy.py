"""The policies: small frozen declarations, each of which answers one question. All of them work together."""

from penstock.core.policy.admit import Latest, Queue
from penstock.core.policy.batch import Batch
from penstock.core.policy.cache import Cache
from penstock.core.policy.limit import AIMD, Fixed, Rate
from penstock.core.policy.order import EarliestDeadline, FairShare, Fifo, Priority
from penstock.core.policy.retry import Retry
from penstock.core.policy.slots import Slots
from penstock.core.pool import Pool
from penstock.executors.base import Inline, Process, Thread
from penstock.executors.child.end import END

__all__ = [
    "AIMD",
    "END",
    "Batch",
    "Cache",
    "EarliestDeadline",
    "FairShare",
    "Fifo",
    "Fixed",
    "Inline",
    "Latest",
    "Pool",
    "Priority",
    "Process",
    "Queue",
    "Rate",
    "Retry",
    "Slots",
    "Thread",
]
