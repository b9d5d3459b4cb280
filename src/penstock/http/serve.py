"""Serving an app until it is told to stop: runtime, native server, signals, a tuned collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from penstock.http.bridge import Mounted
from penstock.http.handler import Handler
from penstock.http.lifespan import Lifespans
from penstock.http.limits import Limits
from penstock.http.server import Server
from penstock.runtime import App, Runtime


@contextlib.asynccontextmanager
async def serving(
    app: App,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    unix_path: str = "",
    grace: float = 30.0,
    limits: Limits | None = None,
) -> AsyncIterator[Server]:
    """A started server of this app, with its runtime; on leaving, what is in flight has `grace` seconds to end."""
    runtime = Runtime(app, grace=grace)
    async with runtime:
        handler = Handler(app, runtime)
        lifespans = Lifespans(app.mounts)
        mounted = Mounted(app, handler, lifespans)
        server = Server(mounted if app.mounts else handler, limits=replace(limits or Limits(), body=app.max_body))
        try:
            await lifespans.start()
            await server.start(host, port, unix_path=unix_path)
            try:
                yield server
            finally:
                end = runtime.clock() + grace
                stopping = asyncio.ensure_future(server.stop(grace))
                await runtime.drain(grace)
                await stopping
                await mounted.stop(max(0.0, end - runtime.clock()))
        finally:
            await lifespans.stop()
            handler.stop()


async def serve(
    app: App,
    host: str,
    port: int,
    *,
    unix_path: str = "",
    grace: float = 30.0,
    announce: Callable[[Server], None] = lambda server: None,
) -> None:
    """Serve until SIGINT or SIGTERM. A second signal ends the waiting for what is in flight."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None

    def signalled() -> None:
        if stop.is_set():
            main.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    async with serving(app, host, port, unix_path=unix_path, grace=grace) as server:
        tune()
        announce(server)
        await stop.wait()


def tune() -> None:
    """Settings of the whole process, which only a program of its own may change.

    What lives as long as the server is not looked at again by the collector, and young garbage less often. Threads
    take turns five times as often, so that the loop gets its turn in milliseconds beside bodies of pure Python.
    """
    sys.setswitchinterval(0.001)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
