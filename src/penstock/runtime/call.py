"""A call in the runtime: from a declaration and arguments to exactly one end.

A body that runs on the loop runs in the task that awaits the call, also if it had to queue first; everything else is
run by an executor, and the awaiting task waits for a future. Whatever happens, the scheduler hears once that the
request ended and once that its work stopped.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Coroutine, Generator
from contextvars import Context, copy_context
from threading import get_ident
from typing import TYPE_CHECKING, Any, Self

from penstock.context import Budget, Frame, frame_var
from penstock.core.request import BACKOFF, PENDING, RUNNING, Request
from penstock.errors import ConfigError
from penstock.runtime.lazy import LazyFuture
from penstock.runtime.stream import only, read
from penstock.service import Status, Timing

if TYPE_CHECKING:
    from penstock.runtime.binding import Binding

begin_future = asyncio.Future.__init__
_STATUS: dict[str, Status] = {"ok": "done", "cancelled": "cancelled"}


class BoundCall(LazyFuture):
    """What `Service.__call__` returns in a runtime; the public shape is `penstock.Call`."""

    __slots__ = (
        "args",
        "budget",
        "context",
        "error",
        "frame",
        "future",
        "items",
        "kwargs",
        "request",
        "runner",
        "stopped",
        "stream",
        "token",
        "trace",
        "used",
        "waiter",
    )

    def __init__(
        self,
        binding: Binding,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        budget: Budget,
        frame: Frame | None,
        id: str,  # noqa: A002 - the request's id
        size: int,
    ) -> None:
        self.binding = binding
        self.args = args
        self.kwargs = kwargs
        self.budget = budget
        self.frame = frame
        self.context: Context | None = None
        self.request = Request(id, budget.tenant, size)  # `item` is set at the submit: no cycle before
        self.error: BaseException | None = None  # the end that the scheduler ordered
        self.future: asyncio.Future[Any] | None = None  # of who awaits: the answer, or the order to start
        self.runner: asyncio.Task[Any] | None = None
        self.begun = False
        self.stream: Any = None
        self.items = 0
        self.used = False
        self.token: Any = None
        self.trace: Any = None

    # What users see

    @property
    def id(self) -> str:
        if not self.request.id:
            self.request.id = self.binding.runtime.next_id()
        return self.request.id

    @property
    def status(self) -> Status:
        request = self.request
        if request.outcome:
            return _STATUS.get(request.outcome, "failed")
        if request.state == RUNNING:
            return "running"
        return "pending" if request.state == PENDING else "queued"

    @property
    def timing(self) -> Timing:
        return Timing(*self.parts())

    def parts(self) -> tuple[float, float, float, float]:
        """Seconds queued, batched, run and streamed so far; they sum to the whole."""
        return self.binding.parts(self.request)

    def __repr__(self) -> str:
        return f"<Call {self.binding.name} {self.id} {self.status}>"

    def __await__(self) -> Generator[Any, Any, Any]:
        binding = self.binding
        if self.used or self.begun:
            return self._again()
        self.used = True
        if binding.streams:
            raise ConfigError(f"{binding.name} streams: use `async for item in call`, not `await`")
        if get_ident() != binding.runtime.thread:
            return asyncio.wrap_future(binding.runtime.hand_over(self)).__await__()
        return self.once().__await__()

    def once(self) -> Coroutine[Any, Any, Any]:
        """What awaiting it does, for who has just made it on the loop of its runtime."""
        self.used = True
        return self._run_here() if self.binding.direct else self._wait_for_answer()

    def _again(self) -> Generator[Any, Any, Any]:
        if self.begun:
            return super().__await__()
        if isinstance(self.error, asyncio.CancelledError):
            raise self.error
        raise RuntimeError(f"{self!r} was awaited before; start() it to await it more than once")

    def __aiter__(self) -> AsyncIterator[Any]:
        if not self.binding.streams:
            return only(self)
        if self.used:
            raise RuntimeError(f"{self!r} was iterated before")
        if get_ident() != self.binding.runtime.thread:
            raise ConfigError(f"{self.binding.name}: a stream can only be read on the loop of its runtime")
        self.used = True
        return read(self)

    def start(self) -> Self:
        """Begin now: a body on the loop in a task of its own, another one wherever it runs."""
        if self.begun:
            return self
        binding = self.binding
        if binding.streams:
            self.used = True
            raise ConfigError(f"{binding.name} streams: its reader drives it; use `async for`")
        if self.used and self.error is None:
            raise RuntimeError(f"{self!r} was awaited before it was started")
        self.used = self.begun = True
        begin_future(self, loop=binding.runtime.loop)
        if self.error is not None:
            super().cancel()  # it was before it began
        elif binding.direct:
            binding.runtime.tasks.start(self)
        else:
            self._begin()
        return self

    def start_for(self, waiter: Any) -> bool:
        """As `start`, but `waiter.set_result` or `.set_exception` is told at once. False if it takes a task, or is an error."""
        binding = self.binding
        if self.used or self.begun or binding.direct or binding.streams or get_ident() != binding.runtime.thread:
            return False
        self.used = True
        self.future = waiter
        self._begin()
        return True

    def _begin(self) -> None:
        if self.binding.contextual:
            self.context = copy_context()
        try:
            self.binding.submit(self)
        except Exception as error:  # of cost=, key= or size=
            self.answer(None, error)

    async def drive(self) -> None:
        """The task of a body that was started, not awaited."""
        try:
            answer = await self._run_here()
        except asyncio.CancelledError:
            super().cancel()
        except BaseException as error:
            if not self.done():
                self.set_exception(error)
            if isinstance(error, KeyboardInterrupt):
                raise
        else:
            if not self.done():
                self.set_result(answer)
        finally:
            del self  # the error that it holds holds this frame

    def cancel(self, msg: Any = None) -> bool:
        """Stop: whoever awaits gets CancelledError, and the work below stops as early as it can."""
        request = self.request
        if request.outcome:
            return False
        if request.state == PENDING:  # if a task was made for it, its first step is still to come
            self.used = True
            request.outcome = "cancelled"
            self.error = asyncio.CancelledError()
            if self.begun:
                super().cancel(msg)
        elif self.runner is not None:
            self.runner.cancel(msg)
        elif self.binding.direct:  # a stream whose reader has an item: the next one that it asks for closes the body
            self.error = asyncio.CancelledError()
            self.binding.abandon(self, begun=True)
        else:
            if self.begun:
                super().cancel(msg)
            elif self.stream is not None:
                self.stream.fail(asyncio.CancelledError())
            elif isinstance(self.future, asyncio.Future):
                self.future.cancel(msg)  # of who awaits
            self.binding.abandon(self)
        return True

    def withdraw(self) -> None:
        """Cancel what others that ended made needless: nobody has run out of patience with it."""
        self.request.root = False
        self.cancel()

    def __del__(self) -> None:
        if self.begun:
            if self._log_traceback:  # asyncio's: an exception that nobody looked at
                super().__del__()
        elif not self.used and self.request.state == PENDING and not self.request.outcome:
            warnings.warn(f"a call of {self.binding.name} was never awaited", RuntimeWarning, stacklevel=2, source=self)

    # For executors

    def remaining(self) -> float | None:
        """Seconds left of the deadline."""
        deadline = self.budget.deadline
        return None if deadline is None else deadline - self.binding.runtime.clock()

    def enter(self) -> None:
        """What runs from here on in this context is part of this call."""
        frame_var.set(Frame(self.budget, self.request, self.binding.runtime))

    # On the loop: the body runs in the task that awaits

    async def _run_here(self) -> Any:
        binding, request = self.binding, self.request
        runtime = binding.runtime
        failure: BaseException | None = None
        runner: asyncio.Task[Any] | None = None
        try:
            binding.submit(self)
            while True:
                if request.state != RUNNING:
                    await self.turn()
                self.runner = runner = asyncio.current_task(runtime.loop)
                cancels = 0 if runner is None else runner.cancelling()
                token = frame_var.set(Frame(self.budget, request, runtime))
                failure = None
                try:
                    answer = await binding.target(*self.args, **self.kwargs)
                except BaseException as error:
                    failure = error
                frame_var.reset(token)
                self.runner = None
                binding.stopped(self, failure)
                if failure is None and self.error is None:
                    return answer
                if request.state == BACKOFF and isinstance(failure, Exception) and self.error is None:
                    continue
                if self.error is not None and (
                    failure is None or runner is None or self._cancelled_by_us(failure, runner, cancels)
                ):
                    raise self.ordered() from None  # the scheduler ended this request first, and its end counts
                assert failure is not None
                raise failure
        except BaseException:
            del self, runner, failure  # what is raised holds this frame, and is held by the call or its task
            raise

    def ordered(self) -> BaseException:
        """The end that the scheduler ordered, given away: its traceback will hold frames that hold this call."""
        error, self.error = self.error, None
        assert error is not None
        return error

    def _cancelled_by_us(self, failure: BaseException, runner: asyncio.Task[Any], cancels: int) -> bool:
        """Whether only the scheduler's own `cancel()` is behind this CancelledError, as in `asyncio.timeout`."""
        return isinstance(failure, asyncio.CancelledError) and runner.uncancel() <= cancels

    async def turn(self) -> None:
        """Wait until the scheduler starts this request; it may refuse it instead."""
        try:
            if self.error is not None:
                raise self.ordered()
            self.future = self.binding.runtime.loop.create_future()
            self.runner = asyncio.current_task(self.binding.runtime.loop)
            await self.future
        except BaseException:
            self.binding.abandon(self)
            raise
        finally:
            self.runner = self.future = None
            del self

    # Elsewhere: an executor runs the body

    async def _wait_for_answer(self) -> Any:
        binding = self.binding
        if binding.contextual:
            self.context = copy_context()
        self.future = binding.runtime.loop.create_future()
        binding.submit(self)
        try:
            return await self.future
        except (asyncio.CancelledError, GeneratorExit):
            if not self.request.outcome:
                binding.abandon(self)
            raise
        finally:
            self.future = None
            del self

    # What the runtime tells a call

    def go(self) -> None:
        """Its turn has come: the body may run in the awaiting task."""
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def answer(self, result: Any, error: BaseException | None) -> None:
        """An executor has the answer, or an error."""
        future = self if self.future is None and self.begun else self.future
        if future is None or future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def fail(self, error: BaseException) -> None:
        """The scheduler has ended this request."""
        if self.stream is not None:
            self.stream.fail(error)
        elif self.future is not None and not self.future.done():
            self.future.set_exception(error)
        elif self.begun and not self.binding.direct:
            if not self.done():
                self.set_exception(error)
        else:
            self.error = error
            if self.future is None and self.runner is not None:
                self.runner.cancel()
