"""The scheduler: every transition of every request, for all services of one runtime.

Plain methods take `now` and return commands; the driver carries them out and reports back. `wake_at` says when to
call `tick` next. A request ends once (`end`), a work stops once (`finish`); leases return only at the second.
Randomness (the jitter of retries) is a parameter. Ties are broken by sequence number, never by hash order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random

from penstock.core import replicas, streams, timeouts
from penstock.core.admission import hopeless, never, overfull, refuse, slow
from penstock.core.commands import Command, End, Revoke, Stop
from penstock.core.dispatch import dispatch, give, settle, start, take, vacate, wake
from penstock.core.lease import barred, fits, learn, left, rivals, starved
from penstock.core.pool import LockOrder, Pool, PoolState
from penstock.core.request import ABANDONED, BACKOFF, ENDED, PENDING, QUEUED, RUNNING, STAGED, Request, Work
from penstock.core.retries import retries
from penstock.core.station import Station, StationOptions
from penstock.core.timers import Timers
from penstock.errors import (
    DeadlineExceeded,
    DeadlockRefused,
    PenstockError,
    ShuttingDown,
    Superseded,
)

_NOTHING: tuple[Command, ...] = ()


class Scheduler:
    """Stations, pools and timers. One a runtime."""

    def __init__(self, random: Random | None = None) -> None:
        self.random = random or Random(0)
        self.stations: dict[str, Station] = {}
        self.pools: dict[Pool, PoolState] = {}
        self.locks = LockOrder()
        self.timers = Timers(self.stations)
        self.seq = 0
        self.out: list[Command] = []
        self.bypass = 16  # how many may pass a request that waits for room in a pool
        self.line: dict[Station, None] = {}  # who waits for room in a pool, in the order in which they began to
        self.barring = False  # somebody there waits for what is kept for another
        self.lapsed = False  # a request has left the queue of somebody there

    @property
    def wake_at(self) -> float:
        """When `tick` is to be called next."""
        return self.timers.wake_at

    # Stations and replicas

    def add(self, options: StationOptions) -> Station:
        station = self.stations[options.name] = Station(options)
        return station

    def pool(self, pool: Pool, capacity: float = 0.0) -> PoolState:
        """The state of a pool, made when it is first seen; `capacity` is that of a Memory which had to be measured."""
        return self.pools.setdefault(pool, PoolState(pool, capacity, len(self.pools)))

    def pressure(self, pool: PoolState, free: float, now: float) -> Sequence[Command]:
        """The pool's device has `free` left, beyond what is to stay free: the budget shrinks to that, or recovers."""
        if pool.pressed(free, now):
            wake(self, list(self.line), now)
        return self._flush(now)

    def replica_up(self, station: Station, index: int, now: float) -> Sequence[Command]:
        """A replica has loaded and takes work."""
        replicas.up(self, station, index, now)
        return self._flush(now)

    def replica_down(self, station: Station, index: int, now: float) -> Sequence[Command]:
        """A replica died; what it ran is reported through `finish`, what was staged there through `revoked`."""
        replicas.down(self, station, index, now)
        return self._flush(now)

    def give_up(self, station: Station, error: BaseException, now: float) -> Sequence[Command]:
        """No replica will come back: refuse what waits and what comes, until one is up again."""
        replicas.give_up(self, station, error, now)
        return self._flush(now)

    def add_replica(self, station: Station) -> int:
        """A place for one more replica, the returned index; it takes work once it is up. A host gets all of its slots."""
        return replicas.add(station)

    def retire(self, station: Station, index: int, now: float) -> Sequence[Command]:
        """This replica takes no new work. `Retire` follows when it runs nothing any more; what is staged comes back."""
        replicas.retire(self, station, index, now)
        return self._flush(now)

    def replica_gone(self, station: Station, index: int) -> None:
        """A retired replica has been put away."""
        replicas.gone(station, index)

    # The life of a request

    def submit(self, station: Station, request: Request, now: float) -> Sequence[Command]:
        """A call arrives. Afterwards it is running (with no Start for direct stations), queued, or ended."""
        request.station = station
        request.submitted = now - request.waited
        self.seq += 1
        request.seq = self.seq
        error = never(station, request, now)
        if error is None and request.held and station.nodes:
            error = self._circle(station, request)
        if error is None and station.hangups.tenants:
            error = hopeless(station, request, now)
        if error is None and station.targets.ttft is not None and (station.waiting or station.targets.pressed(now)):
            error = slow(station, request, now)
        if error is not None:
            self.end(request, "expired" if isinstance(error, DeadlineExceeded) else "refused", now, error)
            return self._flush(now)
        if station.retry is not None:
            station.retry.deposit()
        if request.latest is not None:
            self._supersede(station, request, now)
        if station.passes(request, now) and self._starts_directly(station, request, now):
            return self._flush(now) if self.out or self.barring else _NOTHING
        error = overfull(station, request) or refuse(station, request, now)
        if error is not None:
            self.end(request, "refused", now, error)
            return self._flush(now)
        if request.deadline is not None:
            self.timers.date(request, request.deadline, now)
        request.state = QUEUED
        station.enqueue(request, now)
        at = now + station.start_timeout
        if at < station.check_at:
            self.check(station, at)
        if not station.gathers(request, now) and (station.blocked is None or not self._blocked(station, request, now)):
            dispatch(self, station, now)
        return self._flush(now) if self.out or self.barring else _NOTHING

    def _blocked(self, station: Station, request: Request, now: float) -> bool:
        """Whether others here wait for room already, and this one does not fit either."""
        return station.batch is None and not self._fits(station, request, now)

    def _fits(self, station: Station, request: Request, now: float) -> bool:
        return not barred(self, station, now) and fits(station, (request,))

    def _circle(self, station: Station, request: Request) -> PenstockError | None:
        chain = self.locks.cycle(request.held, station.nodes)
        if chain is None:
            return None
        return DeadlockRefused(
            f"a call of {station.name} could wait for ever for what its own callers hold: {' -> '.join(chain)}; "
            "make this call when theirs have ended, or give inner calls a service with replicas, limits and pools of its own"
        )

    def _supersede(self, station: Station, request: Request, now: float) -> None:
        older = station.latest.get(request.latest)
        if older is not None and older.state == QUEUED:
            self.leave_queue(older, now)
            self.end(older, "refused", now, Superseded(f"{station.name}: a newer call of the same key arrived"))

    def _starts_directly(self, station: Station, request: Request, now: float) -> bool:
        """What need not wait starts within `submit`, if limits and pools allow, and never sees the queue."""
        if station.ready_at(now, nested=station.direct and not request.root) > now:
            return False
        if station.needs and (starved(self, station) or not self._fits(station, request, now)):
            return False
        if request.deadline is not None:
            self.timers.date(request, request.deadline, now)
        if station.waiting:
            station.queue.charge(request, request.cost)  # a nested call passes the queue, not the account
        if station.direct:
            take(self, Work(station, -1, [request], "alone", request.cost), now, now)
        else:
            replica = station.free[-1] if station.router is None else station.router.pick(request, now, self.random)
            start(self, Work(station, replica, [request], "alone", request.cost), now)
        return True

    def cancel(self, request: Request, now: float) -> Sequence[Command]:
        """The caller does not want the answer any more. The caller itself is not told again."""
        if request.state in (ABANDONED, ENDED):
            return _NOTHING
        self.abandon(request, "cancelled", now, None)
        return self._flush(now)

    def progress(self, request: Request, now: float) -> Sequence[Command]:
        """A stream produced items; the first marks the answer as begun."""
        streams.produced(self, request, now)
        return self._flush(now) if self.out or self.barring else _NOTHING

    def paced(self, station: Station, items: int, seconds: float, now: float) -> Sequence[Command]:
        """Streams of this station gave so many items, each so long after the one before it that it is `seconds` in all."""
        streams.paced(self, station, items, seconds, now)
        return self._flush(now) if self.out or self.barring else _NOTHING

    def taken(self, work: Work, now: float) -> Sequence[Command]:
        """A worker took its staged batch: the lease is taken now."""
        station = work.station
        replica = station.replicas[work.replica]
        assert replica.staged is work, f"{work!r} was not staged"
        assert replica.work is None, f"{replica.work!r} has not stopped"
        replica.staged, replica.work = None, work
        station.coming -= 1
        work.staged = False
        station.set_apart(work.requests, -1)
        station.staged -= 1
        if station.router is not None:
            station.router.started(work)
        take(self, work, now, replica.freed)
        if work.live == 0:
            self.out.append(Stop(work))
        dispatch(self, station, now)
        return self._flush(now)

    def revoked(self, work: Work, now: float) -> Sequence[Command]:
        """A staged batch came back: those who still wait return to their place in the queue."""
        station = work.station
        replica = station.replicas[work.replica]
        replica.staged = None
        station.coming -= replica.work is None
        work.staged = False
        work.stopped = True
        station.set_apart(work.requests, -1)
        station.staged -= 1
        back = []
        for request in work.requests:
            request.work = None
            if request.state == STAGED:
                request.state = QUEUED
                back.append(request)
            elif request.state == ABANDONED:
                request.state = ENDED
                request.item = None
        station.requeue(back)
        if replica.up and replica.work is None and replica.index not in station.free:
            station.free.append(replica.index)
        elif replica.leaving:
            vacate(self, station, replica)
        dispatch(self, station, now)
        return self._flush(now)

    def peaked(self, work: Work, peaks: Mapping[str, float]) -> None:
        """This running work took so many bytes of each device at its most: what the service estimates is corrected."""
        if work.lease:
            learn(work, peaks)

    def finish(
        self,
        work: Work,
        now: float,
        errors: Sequence[BaseException | None] | None = None,
        measured: bool = True,
        inside: float | None = None,
    ) -> Sequence[Command]:
        """The work has really stopped. `errors[i]` is what failed request i alone, None an answer.

        Requests that were still running are ended (or wait for a retry); read their state afterwards. `measured` is
        False when the duration says nothing about the service: it was cancelled, or its worker died. `inside`: seconds
        that the body itself ran, where the executor knows.
        """
        station = work.station
        missed = False
        for index, request in enumerate(work.requests):
            error = errors[index] if errors is not None else None
            if request.state == RUNNING:
                if error is not None and retries(self, work, request, error, now):
                    continue
                missed = missed or (request.deadline is not None and now > request.deadline)
                self.end(request, "ok" if error is None else "failed", now)
            elif request.state == ABANDONED:
                missed = missed or request.outcome == "expired"
                request.state = ENDED
                request.work = request.item = None
        lease = give(self, work, now)
        if measured and (not station.direct or station.sampled()):
            station.time.add(work.cost, now - work.started, inside)
        for limit in station.adaptive:
            limit.ended(station.in_flight + 1, missed, now)
        if lease:
            wake(self, [station, *rivals(self, station)], now)
        elif station.waiting:
            dispatch(self, station, now)
        elif station.turned_away is not None and not station.staged:
            station.regret(now)
        return self._flush(now) if self.out or self.barring else _NOTHING

    def end(
        self, request: Request, outcome: str, now: float, error: PenstockError | None = None, *, stops: bool = True
    ) -> None:
        """The one terminal transition. With an error, the caller is told by an End command.

        `stops=False`: its work is staged or running and goes on without it.
        """
        assert request.state not in (ABANDONED, ENDED), f"{request!r} ended twice"
        station = request.station
        assert station is not None
        if request.deadline is not None and request.state != PENDING:
            self.timers.dated -= 1
        work = request.work
        if stops:
            request.state = ENDED
        else:
            assert work is not None
            work.live -= 1
            request.state = ABANDONED
        request.outcome = outcome
        request.ended = now
        if request.owed:
            station.settle(request)
        station.counts[outcome] += 1
        if request.first is None and station.patience is not None and request.root:
            station.patience.exit(request.tenant, now - request.submitted, outcome == "cancelled", now, outcome == "refused")
        if error is not None:
            self.out.append(End(request, error))

    def abandon(self, request: Request, outcome: str, now: float, error: PenstockError | None) -> None:
        """End a request that has not been answered, wherever it is; stop its work if nobody else waits for it."""
        state, work = request.state, request.work
        if state == QUEUED:
            self.leave_queue(request, now)
        elif state == BACKOFF and request.station is not None:
            request.station.set_apart([request], -1)
        self.end(request, outcome, now, error, stops=state not in (STAGED, RUNNING))
        if state == STAGED and work is not None:
            self.out.append(Revoke(work))
        elif state == RUNNING and work is not None and work.live == 0:
            self.out.append(Stop(work))

    def leave_queue(self, request: Request, now: float) -> None:
        station = request.station
        assert station is not None
        station.queue.remove(request)
        station.dequeued((request,))
        if station.blocked is not None:
            left(self, station, request)

    # Time

    def check(self, station: Station, at: float) -> None:
        """Look at this station again no later than `at`."""
        if at < station.check_at:
            station.check_at = at
            self.timers.add(at, station)

    def tick(self, now: float) -> Sequence[Command]:
        """Time has passed: expire, promote, release, retry."""
        while (due := self.timers.pop(now)) is not None:
            if isinstance(due, Station):
                due.check_at = math.inf
                timeouts.station_due(self, due, now)
            else:
                timeouts.request_due(self, due, now)
        return self._flush(now)

    # The end of the runtime

    def drain(self, now: float) -> Sequence[Command]:
        """Take no new calls; finish what has been accepted."""
        for station in self.stations.values():
            station.draining = True
            dispatch(self, station, now)
        return self._flush(now)

    def abort(self, now: float) -> Sequence[Command]:
        """The grace is over: end everything that is left."""
        for station in self.stations.values():
            left = [*station.waiting, *(r for w in station.running for r in w.requests)]
            left += [r for replica in station.replicas if replica.staged for r in replica.staged.requests]
            for request in left:
                if request.state not in (ABANDONED, ENDED):
                    self.abandon(request, "cancelled", now, ShuttingDown(f"{station.name} was shut down"))
        for _, _, what in list(self.timers.heap):
            if isinstance(what, Request) and what.state == BACKOFF:
                self.abandon(what, "cancelled", now, ShuttingDown("shut down"))
        return self._flush(now)

    def _flush(self, now: float) -> Sequence[Command]:
        if self.line:
            settle(self, now)
        if not self.out:
            return _NOTHING
        out, self.out = self.out, []
        return out
