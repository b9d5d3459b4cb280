"""The words of a benchmark: progress while it runs, and the table at its end."""

from __future__ import annotations

import asyncio
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

from penstock.cli.bench.tally import quantile

if TYPE_CHECKING:
    from penstock.cli.bench.load import Load

_EVERY = 0.5  # seconds, on a terminal
_EVERY_LINE = 10.0  # seconds, in a file


async def progress(load: Load, what: str, seconds: float) -> None:
    """One line on stderr that is written over; where stderr is no terminal, a line every ten seconds."""
    terminal = sys.stderr.isatty()
    seen, at = 0, monotonic()
    try:
        while True:
            await asyncio.sleep(_EVERY if terminal else _EVERY_LINE)
            tally, now = load.tally, monotonic()
            latest = sorted(tally.latencies[seen:])
            line = (
                f"{what}: {now - tally.began:.0f} of {seconds:g} s, {len(latest) / (now - at):,.0f} answers/s, "
                f"p50 {duration(quantile(latest, 0.5))}, p99 {duration(quantile(latest, 0.99))}, "
                f"open {len(load.busy) + len(load.due)}, errors {tally.failed}"
            )
            seen, at = tally.answers, now
            print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time as people read it: three figures and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale or unit == "us":
            return f"{seconds / scale:.3g} {unit}"
    raise AssertionError


def table(report: dict[str, Any]) -> str:
    load = report["load"]
    lines = [f"{report['url']}, {report['load_kind']} loop, {report['what']}, {load['seconds']:.1f} s" + (
        " (interrupted)" if report["interrupted"] else ""
    )]  # fmt: skip
    lines.append(f"  throughput   {load['throughput']:,.1f} answers/s ({load['answers']} answers, {load['sent']} sent)")
    if "goodput" in load:
        lines.append(f"  goodput      {load['goodput']:,.1f} /s within {duration(load['within'])}")
    lines.append(f"  latency      {_spread(load['latency'])}")
    if "first_event" in load:
        lines.append(f"  first event  {_spread(load['first_event'])}")
        lines.append(f"  gaps         {_spread(load['gap'])}")
        lines.append(f"  events       {load['events_per_second']:,.0f} /s ({load['events']})")
    lines.append("  statuses     " + (", ".join(f"{code}: {n}" for code, n in load["statuses"].items()) or "none"))
    if load["errors"]:
        lines.append("  errors       " + ", ".join(f"{what}: {n}" for what, n in load["errors"].items()))
    if load["unanswered"]:
        lines.append(f"  unanswered   {load['unanswered']}")
    lines += _compared(report)
    generator = report["generator"]
    if generator["cpu_share"] > 0.9:
        lines.append("  note         this generator used a whole core: the server may be faster than it could show")
    if generator["most_behind_schedule"] > 0.05:
        lines.append(f"  note         the generator was up to {duration(generator['most_behind_schedule'])} behind schedule")
    return "\n".join(lines)


def _compared(report: dict[str, Any]) -> list[str]:
    lines = []
    found = report.get("compared")
    if found:
        alone = f"{found['one_at_a_time_throughput']:,.1f} /s"
        if "speed_up" in found:
            lines.append(f"  speed-up     {found['speed_up']:.2f}x one at a time ({alone})")
        saved = found["latency_reduction"]
        share = f"{abs(saved):.0%} {'less' if saved >= 0 else 'more'}"
        lines.append(f"  latency      {share} than in a line of one at a time ({duration(found['one_at_a_time_latency'])})")
    server = report["server"]
    if server:
        parts = [f"server uses {server['server_cores']:.2f} cores"]
        if "replicas_busy" in server:
            parts.insert(0, f"replicas busy {server['replicas_busy']:.0%}")
        if "batch_size" in server:
            parts.append(f"mean batch {server['batch_size']:.1f}")
        lines.append("  utilisation  " + ", ".join(parts))
    return lines


def _spread(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {duration(values[name])}" for name in ("p50", "p95", "p99", "max", "mean"))
