"""What a penstock server says of itself before and after a run: how busy its replicas and its process were."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from time import monotonic
from urllib.parse import urlsplit, urlunsplit

_LINE = re.compile(r"penstock_(\w+?)(?:\{(.*)\})? (\S+)\Z")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Reading:
    """One look at /metrics: values by (metric, service, replica)."""

    at: float
    values: dict[tuple[str, str, str], float]

    def total(self, name: str, service: str = "") -> float:
        return sum(v for (metric, owner, _), v in self.values.items() if metric == name and owner == service)


def read(url: str, headers: dict[str, str]) -> Reading | None:
    """The /metrics beside this URL; None where there are none of penstock's."""
    parts = urlsplit(url)
    request = urllib.request.Request(  # noqa: S310 - http and https only, as the target was checked
        urlunsplit((parts.scheme, parts.netloc, "/metrics", "", "")),
        headers={name: value for name, value in headers.items() if name.lower() == "authorization"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5.0) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError, ValueError):
        return None
    if "penstock_" not in text:
        return None
    values = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is not None:
            labels = dict(_LABEL.findall(match[2] or ""))
            values[match[1], labels.get("service", ""), labels.get("replica", "")] = float(match[3])
    return Reading(monotonic(), values)


def utilisation(before: Reading | None, after: Reading | None, url: str) -> dict[str, float]:
    """Shares of the time between two readings: of the service's replicas (mean), and cores of the server's process."""
    if before is None or after is None:
        return {}
    service, seconds = urlsplit(url).path.strip("/"), max(after.at - before.at, 1e-9)
    found = {"server_cores": _more(before, after, "cpu_seconds_total") / seconds}
    replicas = after.total("replicas_ready", service)
    busy = _more(before, after, "replica_busy_seconds_total", service)
    if replicas and busy:
        found["replicas_busy"] = busy / replicas / seconds
    starts = _more(before, after, "batch_size_count", service)
    if starts:
        found["batch_size"] = _more(before, after, "batch_size_sum", service) / starts
    return found


def _more(before: Reading, after: Reading, name: str, service: str = "") -> float:
    return after.total(name, service) - before.total(name, service)
