"""What a load generator saw: every latency is kept (eight bytes each), so that quantiles are exact."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any


def quantile(ordered: Sequence[float], q: float) -> float:
    """The nearest-rank quantile of sorted values; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


class Tally:
    """Latencies of good answers in seconds, and counts of everything else."""

    def __init__(self, within: float | None = None) -> None:
        self.within = within
        self.latencies = array("d")
        self.ends = array("d")
        self.firsts = array("d")
        self.gaps = array("d")
        self.statuses: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.items = 0
        self.sent = 0
        self.late = 0.0  # the most that the generator itself was behind its own schedule
        self.began = 0.0
        self.stopped = 0.0  # when it stopped sending
        self.finished = 0.0

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def answers(self) -> int:
        return len(self.latencies)

    @property
    def seconds(self) -> float:
        """The time over which rates are taken: while it sent; to the last answer, if none came before it stopped."""
        window = self.stopped - self.began
        return window if window > 0 and self._in_window() else max(self.finished - self.began, 1e-9)

    def _in_window(self) -> int:
        return bisect_left(self.ends, self.stopped)  # answers are appended as they come

    @property
    def throughput(self) -> float:
        """Good answers a second. Those that came after the sending stopped are not in it."""
        return (self._in_window() or self.answers) / self.seconds

    @property
    def goodput(self) -> float:
        """Good answers a second that took no longer than `within`."""
        if self.within is None:
            return self.throughput
        count = self._in_window() or self.answers
        return sum(latency <= self.within for latency in self.latencies[:count]) / self.seconds

    @property
    def mean(self) -> float:
        return sum(self.latencies) / len(self.latencies) if self.latencies else 0.0

    def report(self) -> dict[str, Any]:
        """As plain values; seconds, unless a name says otherwise."""
        found: dict[str, Any] = {
            "seconds": self.seconds,
            "sent": self.sent,
            "answers": self.answers,
            "throughput": self.throughput,
            "latency": _spread(self.latencies),
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "errors": dict(self.errors.most_common()),
            "unanswered": max(0, self.sent - self.answers - self.failed),
        }
        if self.within is not None:
            found |= {"within": self.within, "goodput": self.goodput}
        if self.firsts:
            found |= {
                "first_event": _spread(self.firsts),
                "gap": _spread(self.gaps),
                "events": self.items,
                "events_per_second": self.items / self.seconds,
            }
        return found


def _spread(values: array[float]) -> dict[str, float]:
    ordered = sorted(values)
    mean = sum(ordered) / len(ordered) if ordered else 0.0
    points = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {"mean": mean} | {n: quantile(ordered, q) for n, q in points.items()} | {"max": quantile(ordered, 1.0)}
