"""Remote servers in the metrics and in the start-up report: what state each is in, and how its calls went."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from penstock.core.fleet import SERVING, TRIED
from penstock.executors.remote import RemoteExecutor, RemoteState

if TYPE_CHECKING:
    from penstock.runtime.binding import Binding


def states(bindings: Iterable[Binding]) -> list[tuple[str, RemoteState]]:
    """Every remote of every service, with the service's name."""
    found = [(binding.name, binding.executor) for binding in bindings]
    return [(name, state) for name, executor in found if isinstance(executor, RemoteExecutor) for state in executor.states()]


def render(bindings: Iterable[Binding], lines: list[str], family: Callable[[str, str, str], str]) -> None:
    """In the Prometheus text format; `family` writes the head of a metric."""
    seen = states(bindings)
    if not seen:
        return
    gauges: tuple[tuple[str, str, str, Callable[[RemoteState], float]], ...] = (
        ("remote_up", "gauge", "1 serving, 0.5 tried after an ejection, 0 ejected or unhealthy.", _up),
        ("remote_in_flight", "gauge", "Calls that a remote runs.", lambda r: r.running),
        ("remote_median_seconds", "gauge", "The median of a remote's latest calls.", lambda r: r.median),
        ("remote_ejections_total", "counter", "How often a remote was ejected.", lambda r: r.ejections),
    )
    for label, kind, text, read in gauges:
        name = family(label, kind, text)
        lines += [f'{name}{{service="{s}",remote="{r.url}"}} {read(r):.9g}' for s, r in seen]
    name = family("remote_calls_total", "counter", "Calls that a remote was sent, by how they ended there.")
    lines += [f'{name}{{service="{s}",remote="{r.url}",outcome="{o}"}} {n}' for s, r in seen for o, n in r.calls.items()]


def _up(state: RemoteState) -> float:
    return 1.0 if state.state == SERVING else 0.5 if state.state == TRIED else 0.0
