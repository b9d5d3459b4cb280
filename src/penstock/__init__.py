"""penstock: run AI models asynchronously, well.

Write ordinary functions and classes; penstock queues, orders, batches, overlaps, streams, bounds, cancels and records
them. Policies are also in `penstock.policy`, errors in `penstock.errors`.
"""

from penstock.context import Budget, budget
from penstock.policy import (
    AIMD,
    END,
    Batch,
    Cache,
    EarliestDeadline,
    FairShare,
    Fifo,
    Fixed,
    Inline,
    Latest,
    Memory,
    Pool,
    Priority,
    Process,
    Queue,
    Rate,
    Remote,
    Retry,
    Slots,
    Thread,
)
from penstock.runtime import App, Runtime, join, map, within  # noqa: A004 - the field's own names
from penstock.service import Call, Service, service

__all__ = [
    "AIMD",
    "END",
    "App",
    "Batch",
    "Budget",
    "Cache",
    "Call",
    "EarliestDeadline",
    "FairShare",
    "Fifo",
    "Fixed",
    "Inline",
    "Latest",
    "Memory",
    "Pool",
    "Priority",
    "Process",
    "Queue",
    "Rate",
    "Remote",
    "Retry",
    "Runtime",
    "Service",
    "Slots",
    "Thread",
    "budget",
    "join",
    "map",
    "service",
    "within",
]
