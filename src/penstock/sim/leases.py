"""A storm's own account of pools: what is taken, what it should be, and how often somebody was passed."""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose

from penstock.core.estimate import Correction
from penstock.core.pool import PoolState
from penstock.core.request import QUEUED, Request, Work
from penstock.core.station import Station


class Wait:
    """One that waits for room, first and alone at its station, and who waited when it began to."""

    def __init__(self, request: Request, lacked: list[PoolState], ahead: dict[Station, dict[Request, None]]) -> None:
        self.request = request
        self.lacked = lacked
        self.ahead = ahead
        self.passed = 0

    def passes(self, work: Work) -> bool:
        """Whether this start is of one who came later. Where all need the same, who is first takes the first one's place."""
        station = work.station
        if station not in self.ahead:
            return True
        if station.variable or work.requests[0].queued == 0.0:  # a nested call that did not queue
            return not any(request in self.ahead[station] for request in work.requests)
        del self.ahead[station]
        return False


class Leases:
    """Counted from the works that run and from who waits, without the scheduler's own counts."""

    def __init__(self, stations: Sequence[Station], bypass: int) -> None:
        self.stations = [station for station in stations if station.needs]
        self.bypass = bypass
        self.budgets: dict[PoolState, tuple[float, float]] = {}  # what pressure has left, and when it was read
        self.waits: dict[Station, Wait] = {}

    def started(self, work: Work, running: Sequence[Work], now: float) -> None:
        """No pool is overdrawn, each gives what was asked for, and nobody is passed without end."""
        station = work.station
        for pool, amount in work.lease:
            used = sum(taken for other in running for p, taken in other.lease if p is pool)
            assert used <= pool.capacity + 1e-9, f"{pool!r}: {used:g} taken"
            others = [other for other in running if other is not work and any(p is pool for p, _ in other.lease)]
            budget = self.budgets.get(pool, (pool.capacity, 0.0))[0]
            assert not others or used <= budget + 1e-9, f"{pool!r}: {used:g} taken, {budget:g} under pressure"
            need = next(need for need in station.needs if need.pool is pool)
            estimate = need.fixed if need.of is None else need.of([request.value for request in work.requests])
            least = Correction.LEAST * estimate - 1e-9
            if len(work.requests) == 1:  # it may have been corrected to more than there is, and has it all
                least = min(least, pool.capacity)
            assert all(need.declared((each,)) <= pool.capacity for each in work.requests), f"{work!r} can never fit"
            assert least <= amount <= Correction.MOST * estimate + 1e-9, f"{work!r} took {amount:g}, asked for {estimate:g}"
        for other, wait in self.waits.items():
            idle = wait.request.state == QUEUED and (other.direct or other.free) and other.ready_at(now) <= now
            if other is not station and wait.passes(work) and idle and any(pool in wait.lacked for pool, _ in work.lease):
                wait.passed += 1
                assert wait.passed <= self.bypass, f"{wait.request!r} of {other.name} was passed {wait.passed} times"

    def pressed(self, pool: PoolState, free: float, now: float) -> None:
        """Before the scheduler hears of it: what the budget is from now on."""
        budget, at = self.budgets.get(pool, (pool.capacity, now))
        self.budgets[pool] = (min(pool.capacity, pool.used + free, budget + (now - at) * pool.capacity / 30), now)

    def measured(self, ratio: float, before: float, after: float) -> None:
        """Estimates rise soon when they were too small, fall slowly when they were too large, and never beyond the peak."""
        peak = min(max(ratio, Correction.LEAST), Correction.MOST)
        if peak > before:
            assert before + 0.2 * (peak - before) <= after <= peak, f"a peak of {ratio:g}: {before:g} became {after:g}"
        else:
            assert before - 0.1 * (before - peak) <= after <= before, f"a peak of {ratio:g}: {before:g} became {after:g}"
            assert after < before or before <= peak + 1e-9, f"a peak of {ratio:g} taught nothing"

    def look(self, now: float) -> None:
        """After every step: what pressure has left, whose turn it is, and what it lacks."""
        for pool, (budget, _) in self.budgets.items():
            assert isclose(pool.effective, budget, abs_tol=1e-6), f"{pool!r}: {pool.effective:g} under pressure, not {budget:g}"
        for station in self.stations:
            alone = len(station.waiting) == 1 and station.batch is None and len(station.needs) == 1
            head = next(iter(station.waiting)) if alone else None
            ready = (station.direct or station.free) and station.ready_at(now) <= now
            lacked = self._lacks(station, head) if head is not None and ready else []
            assert all(pool.leases for pool in lacked), f"{head!r} of {station.name} waits for what nobody has"
            wait = self.waits.get(station)
            if head is None or not lacked:
                self.waits.pop(station, None)
            elif wait is None or wait.request is not head:
                self.waits[station] = Wait(head, lacked, {s: dict(s.waiting) for s in self.stations if s.waiting})
            else:
                wait.lacked = lacked

    def _lacks(self, station: Station, request: Request) -> list[PoolState]:
        return [need.pool for need in station.needs if not need.pool.fits(need.amount((request,)))]
