"""Serving an app until it is told to stop: runtime, native server, signals, a tuned collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from penstock.http.bridge import Mounted
from penstock.http.gate import public
from penstock.http.handler import Handler
from penstock.http.lifespan import Lifespans
from penstock.http.limits import Limits
from penstock.http.server import Server, listening
from penstock.runtime import App, Runtime

Observer = Callable[[Handler], contextlib.AbstractContextManager[object]]
"""Something that looks on: entered when the runtime has started, left when it has stopped."""


@contextlib.asynccontextmanager
async def serving(
    app: App,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    unix_path: str = "",
    grace: float = 30.0,
    inline: bool = False,
    limits: Limits | None = None,
    observers: Sequence[Observer] = (),
) -> AsyncIterator[Server]:
    """A started server of this app, with its runtime; on leaving, what is in flight has `grace` seconds to end.

    The port is taken first: that it is in use should not be found out after minutes of loading.
    """
    with contextlib.ExitStack() as bound:
        sockets = [bound.enter_context(contextlib.closing(sock)) for sock in listening(host, port)]
        runtime = Runtime(app, grace=grace, inline=inline)
        async with runtime:
            handler = Handler(app, runtime)
            handler.replicas.local = not public(host)
            for observer in observers:
                bound.enter_context(observer(handler))
            lifespans = Lifespans(app.mounts)
            mounted = Mounted(app, handler, lifespans)
            limits = replace(limits or Limits(), body=app.max_body)
            server = Server(mounted if app.mounts else handler, refuse=handler.refuse, limits=limits)
            handler.metrics.left = lambda: server.left
            try:
                await lifespans.start()
                await server.start(unix_path=unix_path, bound=sockets)
                try:
                    yield server
                finally:
                    end = runtime.clock() + grace
                    stopping = asyncio.ensure_future(server.stop(grace + 1.0))  # what is ended with the grace is answered
                    await runtime.stop(grace)
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
    inline: bool = False,
    observers: Sequence[Observer] = (),
    announce: Callable[[Server], None] = lambda server: None,
    leaving: Callable[[Server], None] = lambda server: None,
) -> None:
    """Serve until SIGINT or SIGTERM; `announce` is called when the app is up, `leaving` when it begins to stop.

    A signal before it is up, or a second one, ends the waiting: CancelledError.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    up = False

    def signalled() -> None:
        if stop.is_set() or not up:
            main.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signalled)
    async with serving(app, host, port, unix_path=unix_path, grace=grace, inline=inline, observers=observers) as server:
        tune()
        up = True
        announce(server)
        await stop.wait()
        leaving(server)


def tune() -> None:
    """Settings of the whole process, which only a program of its own may change.

    What lives as long as the server is not looked at again by the collector, and young garbage less often. Threads
    take turns ten times as often, so that the loop gets its turn in milliseconds beside bodies of pure Python (row K; four
    such bodies do 2 % less).
    """
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
