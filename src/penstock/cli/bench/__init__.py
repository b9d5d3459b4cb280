"""`penstock bench URL`: open-loop and closed-loop load on any HTTP endpoint, and what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
from pathlib import Path
from time import monotonic, process_time
from typing import Any

from penstock.cli import CommandFailed
from penstock.cli.bench import server
from penstock.cli.bench.compare import compared
from penstock.cli.bench.load import Load, Target, target
from penstock.cli.bench.show import progress, table
from penstock.cli.bench.tally import Tally

NAME = "bench"
HELP = "put load on an HTTP endpoint and report latencies, throughput and errors"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="for instance http://127.0.0.1:8000/hello")
    parser.add_argument("-d", "--data", action="append", default=[], metavar="BODY", help=(
        "JSON body; several are sent in turn; @FILE reads one (a .jsonl file: one a line); makes it a POST"
    ))  # fmt: skip
    parser.add_argument(
        "-H",
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="a request header; $PENSTOCK_TOKEN is sent as the bearer token",
    )
    parser.add_argument("-X", "--method", help="default: POST with a body, else GET")
    parser.add_argument("-c", "--clients", type=count, default=32, help="closed loop: that many callers (default 32)")
    parser.add_argument("-r", "--rate", type=positive, help="open loop: Poisson arrivals a second, whatever is answered")
    parser.add_argument("-t", "--seconds", type=positive, default=10.0, help="how long to send (default 10)")
    parser.add_argument("-n", "--count", type=count, default=0, help="stop after that many requests")
    parser.add_argument("--stream", action="store_true", help="ask for events: time to the first, gaps between them")
    parser.add_argument("--within", type=positive, metavar="SECONDS", help=(
        "count answers within this as goodput, and send it as the deadline (X-Penstock-Within)"
    ))  # fmt: skip
    parser.add_argument("--timeout", type=positive, default=30.0, help="give up on a request after this (default 30 s)")
    parser.add_argument("--baseline", type=float, default=2.0, metavar="SECONDS", help=(
        "time for the run of one at a time that the rest is compared with (default 2; 0 leaves it out)"
    ))  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("a number greater than 0")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def run(options: argparse.Namespace) -> None:
    bodies = _bodies(options.data)
    headers = _headers(options, bool(bodies))
    method = (options.method or ("POST" if bodies else "GET")).upper()
    try:
        where = target(options.url, method, bodies, headers)
    except ValueError as error:
        raise CommandFailed(str(error)) from None
    from penstock.cli.serve import _run

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # an open loop may need thousands of connections
    report: dict[str, Any] = {}
    _run(_bench(options, where, headers, report))
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print(table(report))
    if report["interrupted"]:
        raise SystemExit(130)
    if not report["load"]["answers"]:
        raise SystemExit(1)


async def _bench(options: argparse.Namespace, where: Target, headers: dict[str, str], report: dict[str, Any]) -> None:
    interrupted = asyncio.Event()
    baseline: Tally | None = None
    if options.baseline > 0 and (options.rate or options.clients > 1):
        alone = Load(where, clients=1, within=options.within, timeout=options.timeout)
        baseline = await _watched(alone, options.baseline, "one at a time", interrupted)
    before = await asyncio.to_thread(server.read, options.url, headers)
    clients = 0 if options.rate else options.clients
    load = Load(
        where, clients=clients, rate=options.rate or 0.0, within=options.within, timeout=options.timeout, count=options.count
    )
    began, used = monotonic(), process_time()
    what = f"{options.rate:g} arrivals/s" if options.rate else f"{clients} clients"
    if not interrupted.is_set():
        await _watched(load, options.seconds, what, interrupted)
    tally = load.tally
    share = (process_time() - used) / max(monotonic() - began, 1e-9)
    after = await asyncio.to_thread(server.read, options.url, headers)
    report |= {"url": options.url, "load_kind": "open" if options.rate else "closed", "what": what}
    report |= {"interrupted": interrupted.is_set(), "load": tally.report()}
    if baseline is not None:
        report |= {"baseline": baseline.report(), "compared": compared(baseline, tally, clients, load.arrivals)}
    report |= {"server": server.utilisation(before, after, options.url)}
    report["generator"] = {"cpu_share": share, "most_behind_schedule": tally.late}


async def _watched(load: Load, seconds: float, what: str, interrupted: asyncio.Event) -> Tally:
    """One run, with its progress on stderr. Ctrl-C ends the sending, a second one the waiting; both keep the results."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if interrupted.is_set():
            load.hurry()
        interrupted.set()
        load.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    shown = loop.create_task(progress(load, what, seconds))
    try:
        return await load.run(seconds)
    finally:
        shown.cancel()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _bodies(given: list[str]) -> list[bytes]:
    bodies: list[bytes] = []
    for text in given:
        if not text.startswith("@"):
            bodies.append(text.encode())
            continue
        path = Path(text[1:])
        data = path.read_bytes()
        bodies += [line for line in data.splitlines() if line.strip()] if path.suffix == ".jsonl" else [data]
    return bodies


def _headers(options: argparse.Namespace, sends: bool) -> dict[str, str]:
    headers = {"content-type": "application/json"} if sends else {}
    if os.environ.get("PENSTOCK_TOKEN"):
        headers["authorization"] = f"Bearer {os.environ['PENSTOCK_TOKEN']}"
    headers["accept"] = "text/event-stream, application/x-ndjson;q=0.9" if options.stream else "*/*"
    if options.within:
        headers["x-penstock-within"] = str(options.within)
    for line in options.header:
        name, mark, value = line.partition(":")
        if not mark or any(sign in line for sign in "\r\n"):
            raise CommandFailed(f"{line!r}: headers are given as name:value")
        headers[name.strip().lower()] = value.strip()
    return headers
