"""The way in from plain threads: futures, bounded maps, and a runtime on a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.runtime.call import BoundCall
    from penstock.runtime.driver import Runtime
    from penstock.service import Service


def begin(call: BoundCall, future: concurrent.futures.Future[Any]) -> None:
    """On the loop: start the call and tie it to the future of the thread that made it."""
    if not future.set_running_or_notify_cancel():
        call.cancel()
        return
    try:
        call.start()
    except BaseException as error:
        future.set_exception(error)
        return

    def done(call: BoundCall) -> None:
        if call.cancelled():
            future.set_exception(concurrent.futures.CancelledError())
        elif (error := call.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(call.result())

    call.add_done_callback(done)


def map_futures(
    service: Service[..., Any], items: Iterable[Any], concurrency: int, ordered: bool
) -> Iterator[concurrent.futures.Future[Any]]:
    """See `Service.map`."""
    if concurrency < 1:
        raise ConfigError(f"{service.name}.map(concurrency={concurrency}): at least 1")
    pending: deque[concurrent.futures.Future[Any]] = deque()
    source = iter(items)
    try:
        for item in source:
            pending.append(service.submit(item))
            if len(pending) >= concurrency:
                yield _next(pending, ordered)
        while pending:
            yield _next(pending, ordered)
    finally:
        for future in pending:
            future.cancel()


def _next(pending: deque[concurrent.futures.Future[Any]], ordered: bool) -> concurrent.futures.Future[Any]:
    if ordered:
        concurrent.futures.wait([pending[0]])
        return pending.popleft()
    done = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED).done
    first = next(future for future in pending if future in done)
    pending.remove(first)
    return first


def run_in_thread(runtime: Runtime) -> threading.Thread:
    """Run a loop (uvloop where it is installed) in a daemon thread, and start the runtime on it."""
    started: concurrent.futures.Future[None] = concurrent.futures.Future()

    def main() -> None:
        try:
            import uvloop

            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        except ImportError:
            loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(runtime.start())
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=main, name="penstock-loop", daemon=True)
    thread.start()
    started.result()
    return thread
