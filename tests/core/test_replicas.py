"""Replicas that come and go, and the rule that says how many there should be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand import Stand

from penstock.core.commands import Retire, Revoke, Stop
from penstock.core.policy.batch import Batch
from penstock.core.policy.scale import Elastic, Scale, ScaleState
from penstock.core.request import Request, Work
from penstock.core.station import Station, StationOptions
from penstock.errors import ConfigError
from penstock.sim.drive import Drive


class Gone(Stand):
    """A stand that puts away at once what it is told to, and counts it."""

    def __init__(self, replicas: int = 1, **options: object) -> None:
        self.away: list[int] = []
        self.revoked: list[Work] = []
        super().__init__(replicas, limits=(), **options)

    def do(self, commands: object) -> None:
        commands = list(commands)  # type: ignore[call-overload]
        self.revoked += [command.work for command in commands if isinstance(command, Revoke)]
        self.away += [command.replica for command in commands if isinstance(command, Retire)]
        assert not any(isinstance(command, Stop) for command in commands)
        super().do(commands)
        for command in commands:
            if isinstance(command, Retire):
                self.scheduler.replica_gone(command.station, command.replica)

    def add_one(self, station: Station | None = None) -> int:
        index = self.scheduler.add_replica(station or self.station)
        self.do(self.scheduler.replica_up(station or self.station, index, self.now))
        return index

    def retire(self, index: int) -> None:
        self.do(self.scheduler.retire(self.station, index, self.now))


def test_a_new_replica_takes_what_waits() -> None:
    stand = Gone(1)
    for _ in range(3):
        stand.submit()
    assert len(stand.started) == 1
    assert stand.add_one() == 1
    assert [work.replica for work in stand.started] == [0, 1]


def test_it_takes_nothing_before_it_is_up() -> None:
    stand = Gone(1)
    stand.submit()
    index = stand.scheduler.add_replica(stand.station)
    stand.submit()
    assert len(stand.started) == 1
    stand.do(stand.scheduler.replica_up(stand.station, index, stand.now))
    assert len(stand.started) == 2


def test_an_idle_replica_goes_at_once_and_its_place_is_used_again() -> None:
    stand = Gone(3)
    stand.retire(1)
    assert stand.away == [1] and stand.station.servers == 2
    stand.retire(1)
    assert stand.away == [1], "once"
    assert stand.add_one() == 1 and stand.station.servers == 3
    assert stand.add_one() == 3


def test_a_busy_replica_finishes_and_gets_no_more() -> None:
    stand = Gone(1)
    running, waiting = stand.submit(), stand.submit()
    stand.retire(0)
    assert stand.away == [] and running.work is not None
    stand.finish(1.0)
    assert stand.away == [0] and running.outcome == "ok"
    assert waiting.work is None and not stand.started
    stand.add_one()
    assert waiting.work is not None


def test_what_is_staged_there_returns_to_its_place() -> None:
    stand = Gone(1, batch=Batch(max_size=2, max_wait=0.0), stage=True)
    calls = []
    for _ in range(6):
        calls.append(stand.submit())
        stand.to(stand.now + 0.01)
    stand.finish(1.0)  # its staged batch is taken by hand below
    replica = stand.station.replicas[0]
    staged = replica.staged
    assert staged is not None
    stand.do(stand.scheduler.taken(staged, stand.now))
    stand.started.append(staged)
    behind = replica.staged
    assert behind is not None
    stand.retire(0)
    assert stand.revoked == [behind]
    stand.do(stand.scheduler.revoked(behind, stand.now))
    assert [r for r in calls if r in stand.station.waiting] == list(stand.station.waiting)
    stand.finish(1.0)
    assert stand.away == [0]
    stand.add_one()
    assert stand.started[0].requests == behind.requests


def test_a_worker_that_was_faster_than_the_revocation_runs_it_and_then_goes() -> None:
    stand = Gone(1, batch=Batch(max_size=1, max_wait=0.0), stage=True)
    stand.submit()
    second = stand.submit()
    stand.retire(0)
    staged = stand.station.replicas[0].staged
    assert staged is not None
    stand.finish(1.0)
    assert stand.away == []
    stand.do(stand.scheduler.taken(staged, stand.now))
    stand.started.append(staged)
    stand.finish(1.0)
    assert second.outcome == "ok" and stand.away == [0]


def test_one_that_dies_while_it_leaves_is_gone_and_does_not_come_back() -> None:
    stand = Gone(2)
    running = stand.submit()
    assert running.work is not None
    index = running.work.replica
    stand.retire(index)
    stand.do(stand.scheduler.replica_down(stand.station, index, stand.now))
    stand.finish(0.1, error=RuntimeError("died"))
    assert stand.away == [index]
    stand.do(stand.scheduler.replica_up(stand.station, index, stand.now))
    assert stand.station.free == [1 - index]


# The rule


def test_a_standing_queue_adds_half_as_many_and_a_short_one_does_not() -> None:
    state = ScaleState(Scale(1, 8, delay=0.1, up_after=1.0))
    assert state.wanted(1, 1, 0.5, 0.0) == 1
    assert state.wanted(1, 1, 0.0, 0.5) == 1  # it drained in between
    assert state.wanted(1, 1, 0.5, 0.6) == 1
    assert state.wanted(1, 1, 0.5, 1.5) == 1
    assert state.wanted(1, 1, 0.5, 1.6) == 2
    assert state.wanted(4, 4, 9.0, 2.0) == 4, "a change starts the window anew"
    assert state.wanted(4, 4, 9.0, 3.0) == 6
    assert state.wanted(6, 6, 9.0, 3.5) == 6
    assert state.wanted(6, 6, 9.0, 4.5) == 8
    assert state.wanted(8, 8, 9.0, 20.0) == 8


def test_one_goes_when_the_others_would_do() -> None:
    policy = Scale(1, 8, down_after=10.0, busy=0.7)
    for busy, expected in ((2, 4), (3, 4), (4, 4)):
        state, n, now = ScaleState(policy), 4, 0.0
        while now <= 10.0 and n == 4:
            n = state.wanted(4, busy, 0.0, now)
            now += 0.25
        assert n == (3 if busy <= 0.7 * 3 else expected)
    state = ScaleState(policy)
    assert [state.wanted(1, 0, 0.0, now) for now in (0.0, 20.0, 40.0)] == [1, 1, 1]


def test_a_queue_in_the_last_window_keeps_them() -> None:
    state = ScaleState(Scale(1, 8, delay=0.1, down_after=10.0))
    assert state.wanted(4, 0, 0.0, 0.0) == 4
    assert state.wanted(4, 0, 0.5, 5.0) == 4
    assert state.wanted(4, 0, 0.0, 10.0) == 4
    assert state.wanted(4, 0, 0.0, 20.0) == 3


def test_contradictions() -> None:
    for bad in (Scale, lambda: Scale(0, 3), lambda: Scale(3, 2), lambda: Scale(busy=1.0), lambda: Scale(delay=-1.0)):
        if bad is Scale:
            assert (Scale().minimum, Scale().maximum) == (1, 8)
            continue
        with pytest.raises(ConfigError):
            bad()


@given(
    looks=st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 9), st.sampled_from([0.0, 0.05, 1.0])), max_size=100),
    low=st.integers(1, 4),
    span=st.integers(0, 5),
)
def test_it_stays_within_its_bounds_and_never_swings(looks: list[tuple[float, int, float]], low: int, span: int) -> None:
    policy = Scale(low, low + span)
    state, n, now = ScaleState(policy), low, 0.0
    up_at = down_at = -1e9
    for elapsed, busy, delay in looks:
        now += elapsed
        wanted = state.wanted(n, min(busy, n), delay, now)
        assert low <= wanted <= low + span
        if wanted > n:
            assert now - max(up_at, down_at) >= policy.up_after
            up_at = now
        elif wanted < n:
            assert now - max(up_at, down_at) >= policy.down_after
            down_at = now
        n = wanted


@given(
    looks=st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(0, 30), st.integers(0, 30)), max_size=100),
    low=st.integers(1, 4),
    span=st.integers(0, 20),
)
def test_an_elastic_service_has_what_it_needs_and_lets_go_of_what_a_window_did_not_need(
    looks: list[tuple[float, int, int]], low: int, span: int
) -> None:
    policy = Elastic(low, low + span, keep=10.0)
    state, n, now, went_at = policy.state(), low, 0.0, -1e9
    needs: list[tuple[float, int]] = []
    for elapsed, busy, queued in looks:
        now += elapsed
        busy = min(busy, n)
        needs.append((now, busy + queued))
        wanted = state.wanted(n, busy, 0.1, now, queued)
        assert low <= wanted <= low + span
        assert wanted >= min(busy + queued, policy.maximum), "a call waits although there may be one more"
        if wanted < n:
            assert now - went_at >= policy.keep
            assert wanted >= max(need for at, need in needs if at > now - policy.keep)
            went_at = now
        n = wanted


def test_elastic_ones_go_within_two_windows() -> None:
    state = Elastic(2, 100, keep=10.0).state()
    assert state.wanted(2, 2, 0.0, 0.0, 48) == 50
    n = [50]
    for now in range(1, 22):
        n.append(state.wanted(n[-1], 0, 0.0, float(now)))
    assert n[10] == 50 and n[21] == 2


# In virtual time


class Scaled:
    """A service that scales by itself; a new replica takes a second to load."""

    def __init__(self, policy: Scale, seconds: float) -> None:
        self.drive = Drive(lambda work: seconds)
        self.station = self.drive.add(
            StationOptions("model", replicas=policy.minimum, scale=policy, limits=(), start_timeout=1e6)
        )
        self.history: list[tuple[float, int]] = [(0.0, policy.minimum)]
        self.waits: list[tuple[float, float]] = []
        self.drive.at(0.0, self.look)

    def look(self) -> None:
        drive, station, scheduler = self.drive, self.station, self.drive.scheduler
        wanted = station.wanted(drive.now)
        if wanted != station.servers:
            self.history.append((drive.now, wanted))
        while station.servers < wanted:
            index = scheduler.add_replica(station)
            drive.at(drive.now + 1.0, lambda index=index: drive.up(station, index))
        while station.servers > wanted:
            drive.retire(station, next(r.index for r in station.replicas if not r.leaving))
        drive.at(drive.now + 0.25, self.look)

    def load(self, start: float, end: float, gap: float) -> None:
        for n in range(int((end - start) / gap)):
            self.drive.at(start + n * gap, self.arrive)

    def arrive(self) -> None:
        self.drive.submit(
            self.station,
            Request(),
            then=lambda request: self.waits.append((request.submitted, request.started - request.submitted)),
        )


def test_load_that_comes_and_goes_is_followed() -> None:
    scaled = Scaled(Scale(1, 8, delay=0.1, up_after=1.0, down_after=10.0), seconds=0.1)
    scaled.load(0.0, 20.0, 0.2)  # half a replica
    scaled.load(20.0, 80.0, 0.025)  # four
    scaled.load(80.0, 200.0, 0.2)
    scaled.drive.run(until=200.0)
    counts = [count for _, count in scaled.history]
    at = dict(scaled.history)
    assert max(counts) in (5, 6, 8) and counts[-1] <= 2
    assert all(count == 1 for when, count in at.items() if when < 20.0)
    settled = [wait for when, wait in scaled.waits if 40.0 < when < 80.0]
    assert max(settled) < 0.2, "the queue is gone"
    ups = [a < b for a, b in pairwise(counts)]
    assert ups == sorted(ups, reverse=True), f"it went up, then down, without swinging: {counts}"


def test_a_steady_load_is_left_alone() -> None:
    """Hysteresis: between the rule for more and the rule for less nothing changes."""
    scaled = Scaled(Scale(1, 8, down_after=10.0), seconds=0.1)
    scaled.load(0.0, 300.0, 0.03)  # 3.3 replicas busy
    scaled.drive.run(until=300.0)
    late = [count for when, count in scaled.history if when > 100.0]
    assert late == [], scaled.history
