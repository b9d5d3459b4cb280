"""One frame of `penstock top`: two readings of /status as lines of text that fit a terminal."""

from __future__ import annotations

from penstock.cli.bench.show import duration
from penstock.http.status import ReplicaStatus, ServiceStatus, Status

_BAR = 20  # cells
_HEAD = ("SERVICE", "PLACE", "UP", "BUSY", "RUN", "QUEUE", "LIMIT", "CALLS/s", "FAIL/s", "P50", "P99", "BATCH", "RELEASED")
_LEFT = {0, 1, 12}  # columns that are aligned to the left

BOLD, RED, YELLOW, PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[0m"


def frame(before: Status, now: Status, url: str, width: int, height: int, colour: bool = False) -> list[str]:
    """Lines of at most `width` characters, at most `height` of them; what is most asked for is on top."""
    seconds = max(now.at - before.at, 1e-9)
    past = {service.name: service for service in before.services}
    lines = [_process(before, now, url, seconds), _memory(now), ""]
    marks = {0: BOLD}
    rows = [_row(past.get(service.name), service, seconds) for service in now.services]
    widths = [max(len(row[n]) for row in (_HEAD, *rows)) for n in range(len(_HEAD))]
    marks[len(lines)] = BOLD
    lines.append(_aligned(_HEAD, widths))
    for service, row in zip(now.services, rows, strict=True):
        if service.broken or not _ready(service):
            marks[len(lines)] = RED
        elif service.queued > service.in_flight:
            marks[len(lines)] = YELLOW
        lines.append(_aligned(row, widths))
        lines += [f"  {told}" for told in (service.broken, service.change, service.change_failed) if told]
    lines += _pools(now) + _devices(past, now, seconds) + _busy(past, now, seconds)
    shown = [line[:width] for line in lines[:height]]
    if not colour:
        return shown
    return [f"{marks[n]}{line}{PLAIN}" if n in marks else line for n, line in enumerate(shown)]


def _process(before: Status, now: Status, url: str, seconds: float) -> str:
    cores = (now.cpu_seconds - before.cpu_seconds) / seconds
    calls = sum(sum(service.calls.values()) for service in now.services)
    rate = (calls - sum(sum(service.calls.values()) for service in before.services)) / seconds
    return f"{now.name} at {url}, up {_span(now.uptime)}, {rate:,.1f} calls/s, {cores:.2f} of {now.cores} cores"


def _memory(now: Status) -> str:
    used = now.host_memory_bytes - now.host_memory_free_bytes
    return (
        f"memory {_bytes(now.memory_bytes)} (host {_bytes(used)} of {_bytes(now.host_memory_bytes)}), "
        f"threads {now.threads}, restarts {now.restarts}, loop blocked {now.loop_blocked}x"
    )


def _row(before: ServiceStatus | None, now: ServiceStatus, seconds: float) -> tuple[str, ...]:
    past = now if before is None else before
    ok = now.calls.get("ok", 0) - past.calls.get("ok", 0)
    failed = sum(n for outcome, n in now.calls.items() if outcome not in ("ok", "cancelled"))
    failed -= sum(n for outcome, n in past.calls.items() if outcome not in ("ok", "cancelled"))
    starts, calls = now.starts - past.starts, now.started_calls - past.started_calls
    shares = [_share(past, replica, seconds) for replica in now.replicas]
    return (
        now.name,
        now.place,
        f"{now.ready}/{now.wanted}" if now.replicas else "-",
        f"{sum(shares) / len(shares):.0%}" if shares else "-",
        str(now.in_flight),
        f"{now.queued + now.staged}" + (f" ({_bytes(now.queued_bytes)})" if now.queued_bytes else ""),
        "-" if now.limit is None else f"{now.limit:g}",
        f"{ok / seconds:,.1f}",
        f"{failed / seconds:,.1f}",
        "-" if now.p50 is None else duration(now.p50),
        "-" if now.p99 is None else duration(now.p99),
        f"{calls / starts:.1f}" if starts > 0.5 else "-",
        _reasons(past, now),
    )


def _reasons(past: ServiceStatus, now: ServiceStatus) -> str:
    """Why batches were released when they were, the commonest first."""
    counts = {reason: n - past.released.get(reason, 0.0) for reason, n in now.released.items()}
    whole = sum(counts.values())
    common = sorted(((n, reason) for reason, n in counts.items() if n > 0.5), reverse=True)[:3]
    words = [f"{reason} {n / whole:.0%}" for n, reason in common]
    calls = sum(now.calls.values()) - sum(past.calls.values())
    for how, n in now.cached.items():
        if n > past.cached.get(how, 0):
            words.append(f"{how} {(n - past.cached.get(how, 0)) / calls:.0%} of calls")
    if now.retries > past.retries and calls:
        words.append(f"retried {(now.retries - past.retries) / calls:.0%} of calls")
    return ", ".join(words)


def _ready(service: ServiceStatus) -> bool:
    return not service.draining and (not service.replicas or any(replica.up for replica in service.replicas))


def _share(past: ServiceStatus, now: ReplicaStatus, seconds: float) -> float:
    before = next((replica.busy_seconds for replica in past.replicas if replica.index == now.index), 0.0)
    return min(1.0, max(0.0, (now.busy_seconds - before) / seconds))


def _pools(now: Status) -> list[str]:
    if not now.pools:
        return []
    lines = ["", "LEASED"]
    for pool in now.pools:
        waiting = f", awaited by {', '.join(pool.waiting)}" if pool.waiting else ""
        lines.append(f"  {pool.name:<16} {_bar(pool.used / pool.capacity)} {pool.used:g} of {pool.capacity:g}{waiting}")
    return lines


def _devices(past: dict[str, ServiceStatus], now: Status, seconds: float) -> list[str]:
    """The busy share of each device: the sum of its replicas', which may be more than one where they share it."""
    shares: dict[str, float] = {}
    memory: dict[str, list[int]] = {}
    for service in now.services:
        for replica in service.replicas:
            if replica.device:
                share = _share(past.get(service.name, service), replica, seconds)
                shares[replica.device] = shares.get(replica.device, 0.0) + share
                sums = memory.setdefault(replica.device, [0, 0, 0])
                memory[replica.device] = [a + b for a, b in zip(sums, replica.device_bytes, strict=True)]
    lines = [f"  {name:<16} {_bar(share)} {share:>4.0%}{_taken(*memory[name])}" for name, share in shares.items()]
    return ["", "DEVICES", *lines] if lines else []


def _taken(used: int, reserved: int, peak: int) -> str:
    return f" {_bytes(used)} used, {_bytes(reserved)} reserved, peak {_bytes(peak)}" if reserved else ""


def _busy(past: dict[str, ServiceStatus], now: Status, seconds: float) -> list[str]:
    lines = []
    for service in now.services:
        for replica in service.replicas:
            share = _share(past.get(service.name, service), replica, seconds)
            lines.append(f"  {f'{service.name} #{replica.index}':<16} {_bar(share)} {share:>4.0%} {_state(replica)}")
            if replica.why:
                lines.append(f"      {replica.why}")
    return ["", "REPLICAS", *lines] if lines else []


def _state(replica: ReplicaStatus) -> str:
    down = "drains" if replica.leaving else "down"
    state = replica.state or (("runs" if replica.busy else "idle") if replica.up else down)
    if replica.slots > 1:
        state += f", {replica.running} of {replica.slots}"
    if replica.median:
        state += f", {duration(replica.median)}"
    if replica.memory_bytes:
        state += f", {_bytes(replica.memory_bytes)}"
    place = replica.name or replica.device
    return (
        state
        + (f" on {place}:" if place and any(replica.device_bytes) else f" on {place}" if place else "")
        + _taken(*replica.device_bytes)
    )


def _bar(share: float) -> str:
    full = round(min(1.0, share) * _BAR)
    return "█" * full + "░" * (_BAR - full)


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    pairs = enumerate(zip(cells, widths, strict=True))
    return "  ".join(f"{cell:<{w}}" if n in _LEFT else f"{cell:>{w}}" for n, (cell, w) in pairs).rstrip()


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _span(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours >= 48:
        return f"{hours // 24} days"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {int(seconds) % 60} s"
