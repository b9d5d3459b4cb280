"""The child's main thread: load the body once, then run one unit of work after another."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import importlib
import os
import pickle
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from .calls import Calls, ChildRuntime
from .inert import Service, install
from .link import Link
from .outcome import CANCELLED, MEMORY, Failure, failure, spread, unsendable
from .stepping import Stepping
from .tasks import SLOT, Tasks
from .window import Window
from .wire import BROKEN, DONE, ITEMS, LOAD, OUTGROWN, STOP, UP

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class Server:
    """One replica: its body, and what runs now."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.name = ""
        self.call: Callable[..., Any] = print
        self.options: dict[str, Any] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.number = 0
        self.began = 0.0
        self.index = -1  # the request of the unit that runs now, -1: all of them
        self.calls = Calls(link, self.whose)
        self.cancelled = -1
        self.window: Window | None = None
        self.task: asyncio.Task[Any] | None = None
        link.on_credit = self.credit
        link.on_cancel = self.cancel

    # The listening thread's side

    def credit(self, number: int, count: int) -> None:
        window = self.window
        if window is not None and number == self.number:
            window.acknowledge(count)

    def cancel(self, number: int) -> None:
        self.cancelled = number
        window, task, loop = self.window, self.task, self.loop
        if number != self.number:
            return
        if window is not None:
            window.close()
        if task is not None and loop is not None:
            loop.call_soon_threadsafe(task.cancel)

    # The main thread's side

    def serve(self) -> None:
        """Load, then work until told to stop."""
        link = self.link
        frame = link.receive()
        if frame is None:
            return
        assert frame.kind == LOAD
        try:
            self.load(frame.load())
        except BaseException as error:
            link.send(BROKEN, 0, failure(0, error, self.name or "a replica that was loading"))
            return
        link.send(UP, os.getpid(), None)
        if self.options["steps"] is not None:
            self.stepping().drive()
            return
        if self.options["concurrent"]:
            assert self.loop is not None
            Tasks(link, self.name, self.call, self.options, self.loop).drive()
            return
        run = self.stream if self.options["streams"] else self.batch if self.options["batched"] else self.each
        while (frame := link.receive()) is not None and frame.kind != STOP:
            self.number = frame.number
            self.began = time.perf_counter()
            try:
                units = [frame.load()]
            except BaseException as error:  # a class that this interpreter does not have
                self.answer([], [failure(0, error, f"{self.name}, reading its input,")], shared=True)
                continue
            run(units.pop())  # whoever runs it holds it alone: what lies in shared memory is let go in time

    def load(self, options: dict[str, Any]) -> None:
        self.name, self.options = options["name"], options
        self.link.beat = options["beat"]
        prepare(options)
        found: Any = importlib.import_module(options["module"])
        for name in options["qualname"].split("."):
            found = getattr(found, name)
        found = getattr(getattr(found, "body", None), "target", found)  # the decorator put a Service in its place
        if options["is_async"]:
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        reach(ChildRuntime(self.calls, self.loop))
        if options["is_class"]:
            args, kwargs = pickle.loads(options["init"])  # noqa: S301 - our own parent
            found = found(*args, **kwargs)
        self.call = found
        if options["warmup"] is not None:
            self.warm_up(pickle.loads(options["warmup"]))  # noqa: S301 - our own parent

    def warm_up(self, example: tuple[Any, ...]) -> None:
        """One call before the replica is ready; what it raises is what loading raises."""
        if self.options["steps"] is not None:
            self.stepping().warm_up(example)
            return
        args = [[value] for value in example] if self.options["batched"] else list(example)
        if self.options["streams"]:
            for _ in self.items(self.call(*args)):
                pass
        else:
            self.invoke(args, {})

    def stepping(self) -> Stepping:
        """The loop around a model that advances in steps."""
        return Stepping(self.link, self.name, self.call, self.options["steps"], self.loop, self.attend)

    def whose(self) -> tuple[int, int]:
        """The unit that runs here, and the request in it."""
        slot = SLOT.get()
        return (self.number, self.index) if slot < 0 else (slot, 0)

    def attend(self, number: int, index: int) -> None:
        """Whose request is running now, as calls of other services want to know."""
        self.number, self.index = number, index

    def batch(self, columns: list[list[Any]]) -> None:
        results: list[Any] = []
        failed: Failure | None = None
        try:
            results = spread(self.name, self.invoke(columns, {}), len(columns[0]))
        except BaseException as error:
            failed = failure(0, error, self.name)
        del columns  # what was read from shared memory goes back with the answer
        if failed is not None:
            if failed[1] == MEMORY:
                release_memory()
            self.answer([], [failed], shared=True)
            return
        failures = [failure(n, r, self.name) for n, r in enumerate(results) if isinstance(r, BaseException)]
        for n, *_ in failures:
            results[n] = None
        self.answer(results, failures)

    def each(self, units: list[tuple[Any, Any]]) -> None:
        results: list[Any] = []
        failures: list[Failure] = []
        units.reverse()
        while units:
            args, kwargs = units.pop()
            self.index = len(results)
            try:
                results.append(self.invoke(args, kwargs))
            except BaseException as error:
                failures.append(failure(len(results), error, self.name))
                results.append(None)
            del args, kwargs
        self.answer(results, failures)

    def invoke(self, args: Any, kwargs: Any) -> Any:
        loop = self.loop
        if loop is None:
            return self.call(*args, **kwargs)
        self.task = loop.create_task(self.call(*args, **kwargs))
        try:
            if self.cancelled == self.number:
                self.task.cancel()
            return loop.run_until_complete(self.task)
        finally:
            self.task = None

    def answer(self, results: list[Any], failures: list[Failure], shared: bool = False) -> None:
        """Send what came of the current unit. `shared`: the one failure is everybody's."""
        number, seconds = self.number, time.perf_counter() - self.began
        try:
            kind = OUTGROWN if shared and failures[0][1] == MEMORY else DONE
            self.link.send(kind, number, (results, failures or None, shared, seconds))
        except Exception:
            for n, result in enumerate(results):
                try:
                    pickle.dumps(result)
                except Exception as error:
                    failures.append(unsendable(n, result, error, self.name))
                    results[n] = None
            self.link.send(DONE, number, (results, failures, shared, seconds))

    def stream(self, units: list[tuple[Any, Any]]) -> None:
        """Items go out in order; the window keeps the parent's buffer bounded."""
        number = self.number
        window = self.window = Window(self.options["buffer"])
        if self.cancelled == number:
            window.close()
        failures: list[Failure] = []
        args, kwargs = units.pop()
        self.index = 0
        try:
            items = self.items(self.call(*args, **kwargs))
            del args, kwargs
            with contextlib.closing(items):
                while window.wait():
                    try:
                        item = next(items)
                    except StopIteration:
                        break
                    window.send()
                    self.link.send(ITEMS, number, [item])
        except BaseException as error:
            failures.append(failure(0, error, self.name))
        self.window = None
        if window.closed and not failures:
            failures.append((0, CANCELLED, "", None))
        self.answer([None], failures)

    def items(self, body: Any) -> Generator[Any, None, None]:
        loop = self.loop
        if loop is None:
            yield from body
            return
        try:
            while True:
                self.task = loop.create_task(_next(body))
                if self.cancelled == self.number:
                    self.task.cancel()
                try:
                    item = loop.run_until_complete(self.task)
                except StopAsyncIteration:
                    return
                finally:
                    self.task = None
                yield item
        finally:
            loop.run_until_complete(body.aclose())


def reach(runtime: ChildRuntime) -> None:
    """Let services that are called here find their runtime."""
    real = sys.modules.get("penstock.service")
    if real is not None:
        real.register(runtime)
    else:
        Service.runtime = runtime


def release_memory() -> None:
    """Before a smaller batch is tried: what the failed one left behind, also in torch's cache."""
    gc.collect()
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_available():
        cuda.empty_cache()


async def _next(body: Any) -> Any:
    return await body.__anext__()


def prepare(options: dict[str, Any]) -> None:
    """Make the parent's modules importable, its main module too; in another interpreter the body's module alone."""
    if options["foreign"]:
        install()
    for path in options["paths"]:
        if path not in sys.path:
            sys.path.append(path)
    if options["preparation"]:
        from multiprocessing import process, spawn

        here: Any = process.current_process()
        here._inheriting = True  # as multiprocessing's own children say while they import their parent's program
        try:
            spawn.prepare(options["preparation"])
        finally:
            del here._inheriting


def start(link: Link) -> None:
    """Serve until the parent says stop or is gone."""
    threading.Thread(target=link.listen, name="penstock-control", daemon=True).start()
    Server(link).serve()
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # a normal exit could wait for threads for ever
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
