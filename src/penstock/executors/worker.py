"""The child process of a replica: loads the body once, then runs one unit of work after another.

User code runs in the main thread. A second thread reads the parent's messages, so that a cancel is seen while work
runs, and so that the child is gone as soon as its parent is, even one that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from multiprocessing import spawn
from typing import Any

from penstock.errors import BadResult, ServiceFailed
from penstock.executors.flow import Window
from penstock.executors.invoke import contain, spread
from penstock.executors.wire import encode, receive


class Child:
    """One replica, in its own process."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.writing = threading.Lock()
        self.windows: dict[int, Window] = {}
        self.cancelled: set[int] = set()
        self.runner = asyncio.Runner()
        self.task: tuple[int, asyncio.Task[Any]] | None = None

    def send(self, *message: Any) -> None:
        pieces = encode(message)
        with self.writing:
            for piece in pieces:
                self.sock.sendall(piece)

    def read(self) -> None:
        """The reading thread."""
        try:
            for message in receive(self.sock.recv):
                self.heed(message)
        except OSError:
            pass
        os._exit(0)  # the parent is gone, and whatever user code does, so are we

    def heed(self, message: Any) -> None:
        kind, *rest = message
        if kind == "credit":
            window = self.windows.get(rest[0])
            if window is not None:
                window.acknowledge(rest[1])
        elif kind == "cancel":
            self.cancelled.add(rest[0])
            window = self.windows.get(rest[0])
            if window is not None:
                window.close()
            task = self.task
            if task is not None and task[0] == rest[0]:
                task[1].get_loop().call_soon_threadsafe(task[1].cancel)
        else:
            self.inbox.put(message)

    def serve(self) -> None:
        """The main thread: load, then work until told to stop."""
        kind, preparation, target, init = self.inbox.get()
        assert kind == "load"
        try:
            spawn.prepare(preparation)
            call, options = self.load(target, init)
        except BaseException as error:
            self.send("broken", portable(error, "the replica could not load"))
            return
        self.send("up")
        while (message := self.inbox.get())[0] == "run":
            _, number, units = message
            if options["streams"]:
                result = self.stream(number, call, units[0], options)
            else:
                result = self.run(number, call, units, options)
            self.finish(number, result, options["name"])
            self.cancelled.discard(number)

    def load(self, target: tuple[str, str], init: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
        module, qualname = target
        found: Any = importlib.import_module(module)
        for name in qualname.split("."):
            found = getattr(found, name)
        found = getattr(getattr(found, "body", None), "target", found)  # the decorator put a Service in its place
        if init["is_class"]:
            found = found(*init["args"], **init["kwargs"])
        return found, init

    def run(self, number: int, call: Callable[..., Any], units: list[Any], options: dict[str, Any]) -> list[Any]:
        name = options["name"]
        if options["batched"]:
            columns = [list(column) for column in zip(*(args for args, _ in units), strict=True)]
            try:
                return spread(name, self.invoke(number, call, columns, {}, options), len(units))
            except BaseException as error:
                return [contain(name, error)] * len(units)
        results = []
        for args, kwargs in units:
            try:
                results.append(self.invoke(number, call, args, kwargs, options))
            except BaseException as error:
                results.append(contain(name, error))
        return results

    def invoke(self, number: int, call: Callable[..., Any], args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        if not options["is_async"]:
            return call(*args, **kwargs)

        async def body() -> Any:
            task = asyncio.current_task()
            assert task is not None
            self.task = (number, task)
            if number in self.cancelled:
                task.cancel()
            return await call(*args, **kwargs)

        try:
            return self.runner.run(body())
        finally:
            self.task = None

    def stream(self, number: int, call: Callable[..., Any], unit: Any, options: dict[str, Any]) -> list[Any]:
        """Items go out in order; the window keeps the parent's buffer bounded."""
        window = self.windows[number] = Window(options["buffer"])
        if number in self.cancelled:
            window.close()
        args, kwargs = unit
        items = self.items(call(*args, **kwargs), options["is_async"])
        try:
            while window.wait():
                try:
                    item = next(items)
                except StopIteration:
                    break
                window.send()
                self.send("items", number, [item])
        except BaseException as error:
            return [contain(options["name"], error)]
        finally:
            del self.windows[number]
            with contextlib.suppress(Exception):
                items.close()
        return [asyncio.CancelledError() if window.closed else None]

    def items(self, body: Any, is_async: bool) -> Generator[Any, None, None]:
        if not is_async:
            yield from body
            return
        try:
            while True:
                try:
                    yield self.runner.run(_next(body))
                except StopAsyncIteration:
                    return
        finally:
            self.runner.run(body.aclose())

    def finish(self, number: int, results: list[Any], name: str) -> None:
        results = [portable(r, name) if isinstance(r, BaseException) else r for r in results]
        try:
            self.send("done", number, results)
        except OSError:
            raise
        except Exception:
            self.send("done", number, [self.sendable(result, name) for result in results])

    def sendable(self, result: Any, name: str) -> Any:
        try:
            encode(result)
        except Exception as error:
            return BadResult(f"{name} returned a {type(result).__name__} that cannot leave its process: {error}")
        return result


async def _next(body: Any) -> Any:
    return await body.__anext__()


def portable(error: BaseException, name: str) -> BaseException:
    """The exception as it can cross to the parent, with the traceback of this process."""
    text = "".join(traceback.format_exception(error))
    try:
        back = pickle.loads(pickle.dumps(error))  # noqa: S301 - what was pickled here a moment ago
        if type(back) is type(error) and str(back) == str(error):
            back.add_note(f"in the child process of {name}:\n{text}")
            return back
    except Exception:
        pass
    return ServiceFailed(f"{name} raised {type(error).__name__}: {error}\n{text}")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() == 1:
            os._exit(0)
    sock = socket.socket(fileno=int(sys.argv[1]))
    child = Child(sock)
    threading.Thread(target=child.read, name="penstock-wire", daemon=True).start()
    child.serve()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
