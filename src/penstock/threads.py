"""The way in from plain threads: futures, bounded maps, and a runtime on a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from penstock.core.policy.declared import whole

if TYPE_CHECKING:
    from penstock.runtime.call import BoundCall
    from penstock.runtime.driver import Runtime
    from penstock.service import Service


class Answer(concurrent.futures.Future[Any]):
    """What a plain thread holds of its call."""

    withdrawn = False  # cancelled because others have ended, not because nobody waits that long


def begin(call: BoundCall, future: Answer) -> None:
    """On the loop: start the call and tie it to the future of the thread that made it.

    The future stays pending until the call has ended, so it can be cancelled until then, and the call with it.
    """
    if future.cancelled():
        call.cancel()
        future.set_running_or_notify_cancel()
        return
    try:
        call.start()
    except BaseException as error:
        if future.set_running_or_notify_cancel():
            future.set_exception(error)
        return
    live = [call]  # not longer: whoever keeps the future should not keep the call's inputs

    def done(call: BoundCall) -> None:
        live.clear()
        if call.cancelled():
            future.cancel()
        if not future.set_running_or_notify_cancel():
            return
        error = call.exception()
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(call.result())

    def left(_: object) -> None:
        if future.cancelled() and live:
            try:
                live[0].binding.runtime.post(live[0].withdraw if future.withdrawn else live[0].cancel)
            except (IndexError, RuntimeError):  # the call has just ended, or its loop is closed
                pass

    call.add_done_callback(done)
    future.add_done_callback(left)


def map_futures(
    service: Service[..., Any], items: Iterable[Any], concurrency: int, ordered: bool
) -> Iterator[concurrent.futures.Future[Any]]:
    """See `Service.map`."""
    whole(f"{service.name}.map(concurrency={concurrency!r})", concurrency)
    pending: dict[concurrent.futures.Future[Any], None] = {}
    done: SimpleQueue[concurrent.futures.Future[Any]] = SimpleQueue()

    def first() -> concurrent.futures.Future[Any]:
        future = next(iter(pending)) if ordered else done.get()
        if ordered:
            concurrent.futures.wait([future])
        del pending[future]
        return future

    try:
        for item in items:
            future = service.submit(item)
            pending[future] = None
            if not ordered:
                future.add_done_callback(done.put)
            if len(pending) >= concurrency:
                yield first()
        while pending:
            yield first()
    finally:
        for future in pending:
            if isinstance(future, Answer):
                future.withdrawn = True
            future.cancel()


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
