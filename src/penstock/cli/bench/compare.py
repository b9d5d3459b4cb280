"""Against one at a time: what the same load would have met if the server took one request after another.

`speed_up` is throughput over throughput; `latency_reduction` is 1 - mean latency / mean latency one at a time, where
each request waits for all that came before it: n clients wait n service times; an open loop's recorded arrivals are
replayed through one server (Lindley's recursion, 1952: wait' = max(0, wait + service - gap)).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from penstock.cli.bench.tally import Tally


def compared(baseline: Tally, loaded: Tally, clients: int, arrivals: Sequence[float]) -> dict[str, float]:
    """Speed-up and latency reduction; empty if either run had no answer."""
    if not baseline.answers or not loaded.answers:
        return {}
    service = baseline.mean
    alone = service * clients if clients else replayed(arrivals, service)
    found = {
        "one_at_a_time_throughput": baseline.throughput,
        "one_at_a_time_latency": alone,
        "latency_reduction": 1 - loaded.mean / alone,
    }
    if clients or loaded.throughput > baseline.throughput:  # arrivals that one at a time could serve show no speed-up
        found["speed_up"] = loaded.throughput / baseline.throughput
    return found


def replayed(arrivals: Sequence[float], service: float) -> float:
    """The mean latency of these arrivals at one server that takes `service` seconds for each."""
    wait = total = 0.0
    for before, at in pairwise(arrivals):
        wait = max(0.0, wait + service - (at - before))
        total += wait
    return service + total / max(1, len(arrivals))
