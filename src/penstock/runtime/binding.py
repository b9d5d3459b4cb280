"""One service in one runtime: its station in the scheduler, its executor, and the reports between the two."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.core.policy.admit import Latest
from penstock.core.policy.route import Sticky
from penstock.core.request import BACKOFF, ENDED, PENDING, QUEUED, RUNNING, Request, Work
from penstock.core.station import Station
from penstock.errors import ConfigError, WorkerLost
from penstock.executors.base import Executor, Inline, Place, Thread
from penstock.executors.invoke import contain
from penstock.runtime import items
from penstock.runtime.call import BoundCall
from penstock.runtime.memory import estimate
from penstock.runtime.nested import start_nested
from penstock.runtime.place import make_executor
from penstock.runtime.shared import SharedCall, Sharing
from penstock.runtime.weigh import weigh
from penstock.service import Service

if TYPE_CHECKING:
    from penstock.runtime.driver import Runtime

_LEFT = (asyncio.CancelledError, GeneratorExit)  # how a body on the loop ends whose caller has left
_LOST = (asyncio.CancelledError, WorkerLost)  # results that say nothing about how long the work takes


class Binding:
    """The runtime's side of a service. Also the host to which its executor reports."""

    def __init__(self, runtime: Runtime, service: Service[..., Any], place: Place, station: Station) -> None:
        self.runtime = runtime
        self.service = service
        self.name = service.name
        self.scheduler = runtime.scheduler
        self.timers = runtime.scheduler.timers
        self.station = station
        self.direct = station.direct
        self.batched = service.batched
        self.streams = service.streams
        self.place = place
        in_process = runtime.place is not None or isinstance(place, Inline | Thread)
        self.contextual = in_process and not self.batched
        self.executor: Executor | None = None
        self.target: Callable[..., Any] = service.body.target
        self.loaded = not service.body.is_class
        self.starting: asyncio.Task[None] | None = None
        options = service.options
        self.latest = next((policy for policy in options.admit if isinstance(policy, Latest)), None)
        self.sticky = options.route if isinstance(options.route, Sticky) else None
        self.keyed = self.latest is not None or self.sticky is not None
        self.batch = options.batch
        self.slots = options.slots
        self.item_cost = 1.0 if options.slots is None else options.slots.item_cost
        self.size = options.size
        self.within = options.within
        self.variable = station.variable
        self.names = tuple(service.signature.parameters)
        self.name_set = frozenset(self.names)
        station.owner = self
        self.sharing = None if options.cache is None else Sharing(self, options.cache)
        self.call: type[BoundCall] = BoundCall if self.sharing is None else SharedCall

    # Starting and stopping

    async def start(self) -> None:
        """Load all replicas."""
        if self.direct:
            if not self.loaded:
                self.target = self.service.body.load()
                self.loaded = True
            return
        if self.executor is None:
            self.executor = make_executor(self)
            await self.executor.start()
            self.runtime.replicas.start()

    def start_soon(self) -> None:
        """For a service that nobody listed: load when the first call comes."""
        if self.direct:
            if not self.loaded:
                self.target = self.service.body.load()
                self.loaded = True
        elif self.starting is None:
            self.starting = self.runtime.loop.create_task(self._start_late())

    async def _start_late(self) -> None:
        try:
            await self.start()
        except Exception as error:
            self.runtime.apply(self.scheduler.give_up(self.station, error, self.runtime.clock()))

    # What calls ask

    def submit(self, call: BoundCall) -> None:
        """Give the call to the scheduler."""
        runtime, request = self.runtime, call.request
        if call.error is not None:
            raise call.error
        if (wake := runtime.unwatched) is not None:
            wake()
        now = runtime.clock()
        request.item = call
        request.arrival = now
        budget = call.budget
        if budget.deadline is not None:
            request.deadline = budget.deadline
        request.priority = budget.priority
        frame = call.frame
        if frame is not None and frame.request is not None:
            self._nest(request, frame.request)
        if not request.id:
            request.id = runtime.next_id()
        if self.batch is not None:
            self._price(call, request)
        elif self.slots is not None and self.slots.cost is not None:
            request.cost = self.slots.start_cost(call.args, call.kwargs)
        if self.variable:
            request.amounts = estimate(self.service, request, call.args, call.kwargs)
        if self.keyed:
            self._key(call, request)
        if self.size is not None:
            request.size = self._sized(call)
        elif not request.size and not self.direct:
            request.size = weigh(call.args) + (weigh(call.kwargs.values()) if call.kwargs else 0)
        commands = self.scheduler.submit(self.station, request, now)
        if commands:
            runtime.apply(commands)
        if self.station.elastic and request.state == QUEUED and not self.station.free:
            runtime.replicas.more(self)
        if self.timers.wake_at < runtime.armed:
            runtime.arm()

    def _nest(self, request: Request, parent: Request) -> None:
        request.root = parent.station is None  # then it is one of a group, and the group was not submitted itself
        request.arrival = parent.arrival
        request.held = parent.held
        if parent.station is not None and parent.station.nodes:
            request.held = tuple(dict.fromkeys((*parent.held, *parent.station.nodes)))

    def _key(self, call: BoundCall, request: Request) -> None:
        if self.latest is not None:
            request.latest = self.latest.of(call.args, call.kwargs, request.tenant)
        if self.sticky is not None:
            request.affinity = self.sticky.of(call.args, call.kwargs, request.tenant)

    def _sized(self, call: BoundCall) -> int:
        assert self.size is not None
        size = self.size(*call.args, **call.kwargs)
        if not size >= 0:
            raise ConfigError(f"{self.name}: size= gave {size!r}; give the bytes of a call's input, 0 or more")
        return size

    def _price(self, call: BoundCall, request: Request) -> None:
        assert self.batch is not None
        if len(call.args) != len(self.names) or call.kwargs:
            if not call.args and call.kwargs.keys() == self.name_set:
                call.args = tuple([call.kwargs[name] for name in self.names])
            else:
                bound = self.service.signature.bind(*call.args, **call.kwargs)
                bound.apply_defaults()
                call.args = tuple(bound.arguments.values())
            call.kwargs = {}
        request.value = call.args[0] if len(call.args) == 1 else call.args
        if self.batch.cost is not None:
            request.cost = self.batch.alone(request.value)
        if self.batch.key is not None:
            request.key = self.batch.key_of(request.value)

    def stopped(self, call: BoundCall, failure: BaseException | None) -> None:
        """A body that ran in its caller's task has come to its end."""
        runtime, request = self.runtime, call.request
        work = request.work
        if work is None:
            return
        now = runtime.clock()
        live = request.state == RUNNING
        if live and failure is not None and isinstance(failure, _LEFT):
            self.scheduler.cancel(request, now)
        measured = failure is None and live
        commands = self.scheduler.finish(work, now, None if failure is None else (failure,), measured)
        if live and request.state != BACKOFF:
            self.record(call, failure)
        if commands:
            runtime.apply(commands)
        if self.timers.wake_at < runtime.armed:
            runtime.arm()
        if runtime.closing:
            runtime.settle()

    def abandon(self, call: BoundCall, *, begun: bool = False) -> None:
        """Nobody waits for this call any more. `begun`: its body has, on the loop, and is still to stop."""
        runtime, request = self.runtime, call.request
        if request.outcome:
            return
        now = runtime.clock()
        running = request.state == RUNNING
        commands = self.scheduler.cancel(request, now)
        self.record(call, None)
        runtime.apply(commands)
        if running and self.direct and not begun and request.work is not None:
            runtime.apply(self.scheduler.finish(request.work, now, None, measured=False))
        runtime.arm()
        if runtime.closing:
            runtime.settle()

    def run(self, work: Work) -> None:
        """The scheduler started this work."""
        assert self.executor is not None
        self.executor.run(work)

    def resume(self, work: Work) -> None:
        """A reader took one item of this work's stream."""
        if self.executor is not None and not work.stopped:
            self.executor.resume(work, 1)

    # What an executor reports

    def taken(self, work: Work) -> None:
        self.runtime.apply(self.scheduler.taken(work, self.runtime.clock()))

    def returned(self, work: Work) -> None:
        self.runtime.apply(self.scheduler.revoked(work, self.runtime.clock()))

    def finished(self, work: Work, results: Sequence[Any], seconds: float | None = None, measured: bool = True) -> None:
        runtime = self.runtime
        now = runtime.clock()
        errors = [result if isinstance(result, BaseException) else None for result in results]
        failed = errors.count(None) < len(errors)
        if failed:  # what a body has returned, or is unpickled, nobody has looked at
            errors = [None if error is None else contain(self.name, error, own=0) for error in errors]
        lost = failed and any(isinstance(error, _LOST) for error in errors)
        waiting = [
            (request, result, error)
            for request, result, error in zip(work.requests, results, errors, strict=True)
            if request.state == RUNNING
        ]
        commands = self.scheduler.finish(work, now, errors if failed else None, measured and not lost, seconds)
        if commands:
            runtime.apply(commands)  # the next work starts before these answers are read
        for request, result, error in waiting:
            if request.state == BACKOFF:
                continue
            call = request.item
            self.record(call, error)
            if self.streams:
                call.stream.close(error)
            else:
                call.answer(result, error)
        if self.timers.wake_at < runtime.armed:
            runtime.arm()
        if runtime.closing:
            runtime.settle()

    def emitted(self, pairs: Sequence[tuple[Work, Any]]) -> None:
        items.emitted(self, pairs)

    def outgrown(self, work: Work, part: range) -> None:
        self.station.outgrown(work.requests[part.start : part.stop])

    def peaked(self, work: Work, peaks: Mapping[str, float]) -> None:
        self.scheduler.peaked(work, peaks)

    def called(
        self, request: Request | None, alone: bool, name: str, args: Any, kwargs: Any, within: float | None
    ) -> BoundCall:
        return start_nested(self.runtime, request, alone, name, args, kwargs, within)

    def produced(self, work: Work, items_: Sequence[Any]) -> None:
        items.produced(self, work, items_)

    def replica_up(self, replica: int) -> None:
        self.runtime.apply(self.scheduler.replica_up(self.station, replica, self.runtime.clock()))
        self.runtime.arm()

    def replica_down(self, replica: int, error: BaseException, others: Sequence[int] = ()) -> None:
        self.runtime.restarts += getattr(error, "restarts", 1)
        now = self.runtime.clock()
        for index in (replica, *others):
            self.runtime.apply(self.scheduler.replica_down(self.station, index, now))
        if getattr(error, "final", False):
            self.runtime.apply(self.scheduler.give_up(self.station, error, now))

    # The record

    def parts(self, r: Request) -> tuple[float, float, float, float]:
        """Seconds queued, batched, run and streamed; they sum to the whole, whatever has happened so far."""
        if r.state == PENDING:
            return 0.0, 0.0, 0.0, 0.0
        end = r.ended or self.runtime.clock()
        started, first = r.started, r.first
        if not started:
            return end - r.submitted, 0.0, 0.0, 0.0
        ran_to = end if first is None else first
        return r.released - r.submitted, started - r.released, ran_to - started, end - ran_to

    def record(self, call: BoundCall, error: BaseException | None) -> None:
        """Write the call's one line to the log."""
        r = call.request
        work, frame, stream, items = r.work, call.frame, call.stream, call.items
        if stream is not None and r.outcome in ("ok", "failed"):
            items += len(stream.items)  # which the reader will take after the end
        queued, batched, ran, streamed = self.parts(r)
        self.runtime.log.append(
            (
                r.id,
                self.name,
                r.tenant,
                r.outcome,
                "" if error is None else type(error).__name__,
                r.submitted,
                queued,
                batched,
                ran,
                streamed,
                0 if work is None else len(work.requests),
                "" if work is None else work.reason,
                -1 if work is None else work.replica,
                items,
                "" if frame is None or frame.request is None else frame.request.id,
            )
        )
        if r.state == ENDED:  # else its work may still read the item, and lets go of it when it stops
            r.item = None  # no reference cycles: what has ended is freed at once, and the collector has nothing to find
            r.work = None
