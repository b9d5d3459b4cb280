"""`penstock serve module:app`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from penstock import App, Process, Queue, Remote, Runtime, Service
from penstock.cli import CommandFailed, models
from penstock.cli.load import load_app
from penstock.executors.base import Thread
from penstock.executors.remote import RemoteState
from penstock.http.gate import public
from penstock.http.remotes import states
from penstock.http.serve import Observer, serve
from penstock.http.server import CannotListen, Server
from penstock.policy import AIMD, Scale
from penstock.runtime.place import thread_for_each
from penstock.runtime.sizes import sizes
from penstock.runtime.timeline import Timeline
from penstock.runtime.tokens import Tokens
from penstock.service import runtime_of_loop

NAME = "serve"
HELP = "serve an app over HTTP"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("app", metavar="module:app", nargs="?", help="where the App (or one service) is")
    models.arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: this machine only)")
    parser.add_argument("--port", type=port, default=8000, help="0 lets the system choose (default: 8000)")
    parser.add_argument("--uds", default="", metavar="PATH", help="listen on a unix socket as well")
    parser.add_argument("--tokens", metavar="FILE", help="callers need a bearer token of this file (`penstock token add`)")
    parser.add_argument("--insecure", action="store_true", help="let a public --host be called without tokens")
    parser.add_argument("--trace", metavar="FILE", help="write a timeline of the run, for https://ui.perfetto.dev")
    parser.add_argument("--otel", action="store_true", help="send spans by OTLP, as the OTEL_* variables say")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds for what is in flight when it stops")
    parser.add_argument("--inline", action="store_true", help="no child processes: a debugger stops in their bodies")
    parser.add_argument("--reload", action="store_true", help="start anew when a file changes (for development)")


def port(text: str) -> int:
    """A port, or a ValueError; argparse tells the name of this function."""
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise ValueError
    return number


def run(options: argparse.Namespace) -> None:
    """Exit status: 0 after SIGINT or SIGTERM, 1 when it cannot start, 130 when a second signal cut it off."""
    if not options.app and not any(models.named(options)):
        print("penstock: what is to be served? Give module:app, or models: --chat, --vllm, --embed, --rerank", file=sys.stderr)
        raise SystemExit(2)
    if options.reload:
        from penstock.cli.reload import supervise

        if not options.app:
            raise CommandFailed("--reload is for an app in a module: there is no code of yours to watch")

        supervise(sys.argv[1:], options.app.partition(":")[0])
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    began = time.monotonic()
    what = options.app or "the models"
    try:
        app = load_app(options.app) if options.app else App()
        models.added(options, app)
    except Exception as error:
        if options.debug or isinstance(error, CommandFailed):
            raise
        raise CommandFailed(f"{what} cannot be loaded: {_blamed(error)} (--debug shows the traceback)") from error

    app.chat_page = app.chat_page or options.chat_page
    if app.models:
        print(f"loading {', '.join(f'{m.task} model {m.name}' for m in app.models)}", file=sys.stderr, flush=True)
    if options.tokens:
        app.tokens = Tokens(options.tokens)
    if app.tokens is None and not options.insecure and public(options.host):
        raise CommandFailed(
            f"--host {options.host} would let everybody who reaches this machine call {app.name}: give --tokens FILE "
            "(`penstock token add NAME` makes one), or --insecure, for instance behind a proxy that checks callers"
        )

    telling: list[asyncio.Task[None]] = []

    def announce(server: Server) -> None:
        telling.pop().cancel()
        url = f"http://{_shown(options.host)}:{server.port}" if server.port else f"unix:{options.uds}"
        print(report(app, url, time.monotonic() - began, _remotes(), options.inline), file=sys.stderr, flush=True)
        if options.uds and server.port:
            print(f"  also on the unix socket {options.uds}", file=sys.stderr, flush=True)

    def leaving(server: Server) -> None:
        wait = f"; what is in flight has {options.grace:g} s, a second Ctrl-C ends it now" if server.busy else ""
        print(f"{app.name} stops{wait}", file=sys.stderr, flush=True)

    async def main() -> None:
        telling.append(asyncio.create_task(_tell(app)))
        await serve(
            app,
            options.host,
            options.port,
            unix_path=options.uds,
            grace=options.grace,
            inline=options.inline,
            observers=_observers(options),
            announce=announce,
            leaving=leaving,
        )

    try:
        _run(main())
    except asyncio.CancelledError:
        raise SystemExit(130) from None
    except CannotListen as error:
        if options.debug:
            raise
        raise CommandFailed(f"{error.strerror}; choose another --port, --host or --uds") from error
    except Exception as error:
        if options.debug:
            raise
        raise CommandFailed(f"{what} cannot start: {_blamed(error)} (--debug shows the traceback)") from error


async def _tell(app: App) -> None:
    """Say what still loads, if that takes a while."""
    began = time.monotonic()
    await asyncio.sleep(_SILENT)
    while True:
        runtime = runtime_of_loop()
        missing = [name for name in app.services if not (isinstance(runtime, Runtime) and runtime.ready(name))]
        print(
            f"loading {', '.join(missing) or 'what is mounted'} ({time.monotonic() - began:.0f} s so far)",
            file=sys.stderr,
            flush=True,
        )
        await asyncio.sleep(_AGAIN)


def _observers(options: argparse.Namespace) -> list[Observer]:
    """Who looks on, as the command line asks."""
    found: list[Observer] = []
    if options.trace:
        found.append(lambda handler: Timeline(handler.runtime, options.trace))
    if options.otel:
        from penstock.http.spans import Spans

        found.append(Spans)
    return found


def _blamed(error: BaseException) -> str:
    """What and where, in one line: the innermost place that is not in a library."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/site-packages/" not in f.filename and not f.filename.startswith((_HERE, _STDLIB))]
    ours = [f for f in ours if os.path.exists(f.filename)]  # not "<frozen ...>", nor the source of a compiled module
    where = f" at {os.path.relpath(ours[-1].filename)}:{ours[-1].lineno}" if ours else ""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}{where}"


_SILENT, _AGAIN = 2.0, 15.0  # seconds of loading before it is told, and told again
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_STDLIB = os.path.dirname(os.path.abspath(os.__file__))


def _run(main: object) -> None:
    assert asyncio.iscoroutine(main)
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _remotes() -> dict[str, list[RemoteState]]:
    """The remotes of each service, as the runtime of this loop has found them."""
    runtime = runtime_of_loop()
    found: dict[str, list[RemoteState]] = {}
    for name, state in states(runtime.bindings.values() if isinstance(runtime, Runtime) else ()):
        found.setdefault(name, []).append(state)
    return found


def report(
    app: App, url: str, seconds: float, remotes: Mapping[str, Sequence[RemoteState]] | None = None, inline: bool = False
) -> str:
    """What runs, and where to ask it."""
    lines = [f"{app.name} is up at {url} (started in {seconds:.1f} s)"]
    for name in app.public:
        facts = _facts(app, app.services[name], inline)
        methods = "POST, GET" if app.services[name].safe else "POST"
        lines.append(f"  {methods} {url}/{name}  {', '.join(facts)}")
        for remote in (remotes or {}).get(name, ()):
            lines.append(f"       at {remote.url}  {remote.state}{f': {remote.why}' if remote.why else ''}")
    for model in app.models:
        kind, path = _SERVED[model.task]
        lines.append(f"  {kind} {model.name}: POST {url}{path}  {', '.join(_facts(app, model.services[0], inline))}")
        for remote in (remotes or {}).get(model.services[0].name, ()):
            lines.append(f"       at {remote.url}  {remote.state}{f': {remote.why}' if remote.why else ''}")
    if app.chat_page:
        lines.append(f"  page {url}/chat")
    lines.append(f"  GET  {url}/healthz /readyz /metrics /status /openapi.json")
    if app.tokens is not None:
        lines.append(f"  callers need a token of {app.tokens.path}")
    return "\n".join(lines)


_SERVED = {
    "chat": ("chat", "/v1/chat/completions"),
    "embedding": ("embed", "/v1/embeddings"),
    "rerank": ("rerank", "/v1/rerank"),
}


def _targets(limit: AIMD) -> list[str]:
    first = [] if limit.ttft is None else [f"first item within {limit.ttft:g} s"]
    return first if limit.tpot is None else [*first, f"{limit.tpot:g} s an item"]


def _facts(app: App, service: Service[..., Any], inline: bool) -> list[str]:
    """Where a service runs, how its calls run together, and what bounds it."""
    defaults, o = sizes(app.profile), service.options
    place = type(o.on).__name__ if o.on is not None else "Inline" if service.is_async else "Thread"
    if inline and place == "Process":
        place = "Inline" if service.is_async else "Thread"
    replicas = getattr(o.on, "replicas", None)
    facts = [place.lower()]
    if isinstance(o.on, Remote):
        facts = [f"remote x{len(o.on.urls)} with {o.on.connections} connections each"]
    elif isinstance(replicas, Scale):
        facts = [f"{place.lower()} x{replicas.minimum} to {replicas.maximum}"]
    elif replicas is not None and place != "Inline":
        facts = [f"{place.lower()} x{replicas}"]
    elif place == "Thread" and thread_for_each(service, o.on or Thread()):
        facts = ["a thread for each stream"]
    elif place == "Thread":
        facts = [f"thread x{1 if service.body.is_class or service.batched else defaults.threads}"]
    if o.slots is not None:
        facts.append(f"{o.slots.size} slots")
    elif place == "Process" and isinstance(o.on, Process) and o.on.concurrency > 1:
        facts.append(f"{o.on.concurrency} calls at once in each")
    if o.batch is not None:
        facts.append(f"batches of {o.batch.max_size} within {o.batch.max_wait * 1e3:g} ms")
    for limit in o.limit or ():
        facts += (isinstance(limit, AIMD) and _targets(limit)) or [str(limit)]
    queue = next((policy for policy in o.admit if isinstance(policy, Queue)), None)
    if queue is not None:
        facts.append(f"queue of {queue.items}")
    facts.append(f"starts within {o.start_timeout or defaults.start_timeout:g} s")
    if service.streams:
        facts.append("streams")
    return facts
