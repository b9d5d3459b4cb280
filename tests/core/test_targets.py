"""Targets for first items and for the pace of streams: what is predicted, who starts, who is turned away."""

from __future__ import annotations

from random import Random

import pytest

from penstock.core.policy.limit import AIMD
from penstock.core.request import QUEUED, RUNNING, Request
from penstock.core.scheduler import Scheduler
from penstock.core.station import Station, StationOptions
from penstock.errors import ConfigError, Overloaded

PRICE = 0.001  # seconds to the first item for each unit of a start


class Line:
    """A station of many slots that works starts off one after the other, in virtual time."""

    def __init__(self, ttft: float | None = 1.0, slots: int = 64) -> None:
        self.scheduler = Scheduler(Random(1))
        options = StationOptions("model", replicas=slots, limits=(AIMD(ttft=ttft),), streams=True)
        self.station: Station = self.scheduler.add(options)
        for index in range(slots):
            self.scheduler.replica_up(self.station, index, 0.0)
        self.now = self.free_at = 0.0
        self.due: list[tuple[float, Request]] = []
        self.ended: list[Request] = []

    def carry(self, commands: object) -> None:
        for command in commands:  # type: ignore[attr-defined]
            if hasattr(command, "work"):
                self.free_at = max(self.free_at, self.now) + PRICE * command.work.cost
                self.due.append((self.free_at, command.work.requests[0]))
            else:
                self.ended.append(command.request)

    def call(self, cost: float, tenant: str = "") -> Request:
        request = Request(f"r{self.scheduler.seq}", cost=cost, tenant=tenant, arrival=self.now)
        self.carry(self.scheduler.submit(self.station, request, self.now))
        return request

    def until(self, at: float) -> None:
        while self.due and self.due[0][0] <= at:
            self.now, request = self.due.pop(0)
            if request.state == RUNNING:
                self.carry(self.scheduler.progress(request, self.now))
                assert request.work is not None
                self.carry(self.scheduler.finish(request.work, self.now))
        self.now = at

    def taught(self) -> Line:
        for n in range(20):
            self.call(50.0 + 10 * (n % 5))
            self.until(self.now + 1.0)
        return self


def test_the_time_to_a_first_item_is_learned_by_what_is_under_way() -> None:
    line = Line().taught()
    assert line.station.targets.time.seconds(400.0) == pytest.approx(400 * PRICE, rel=0.05)
    assert line.station.targets.under_way == 0


def test_starts_wait_in_the_queue_while_others_are_worked_off() -> None:
    line = Line().taught()
    requests = [line.call(100.0) for _ in range(5)]
    running = [request for request in requests if request.state == RUNNING]
    assert [request.state for request in requests] == [RUNNING] * 2 + [QUEUED] * 3, "0.15 of a second is 150 units"
    line.until(line.now + 0.1)
    assert sum(request.state == RUNNING for request in requests[2:]) == 1, "a first item lets the next one start"
    assert running[0].outcome == "ok"


def test_who_would_be_too_late_is_turned_away_at_the_door_with_a_time_to_come_back() -> None:
    line = Line().taught()
    for _ in range(30):
        line.call(100.0)
    refused = [request for request in line.ended if request.outcome == "refused"]
    assert len(refused) == pytest.approx(21, abs=2), "0.9 s is nine starts' time"
    with pytest.raises(Overloaded) as raised:
        raise next(command.error for command in _refusal(line))
    assert 0 < raised.value.retry_after < 1.0


def _refusal(line: Line) -> object:
    request = Request("late", cost=100.0, arrival=line.now)
    return line.scheduler.submit(line.station, request, line.now)


def test_what_has_become_too_late_gives_way_to_what_is_in_time() -> None:
    line = Line().taught()
    for _ in range(9):
        line.call(100.0)
    line.free_at += 3.0  # the model stands still
    line.due = [(at + 3.0, request) for at, request in line.due]
    old = list(line.station.waiting)
    line.until(line.now + 2.9)
    line.station.targets.moved = line.station.targets.left = 0.0
    new = line.call(10.0)
    line.until(line.now + 2.0)
    assert new.outcome == "ok"
    assert [request.outcome for request in old].count("refused") >= len(old) - 1


def test_one_that_could_never_be_in_time_is_served_unless_others_are_turned_away() -> None:
    line = Line().taught()
    first, long = line.call(10.0), line.call(2000.0)
    assert long.state == RUNNING, "late, but it takes nobody's time"
    line.until(line.now + 10.0)
    line.call(10.0)
    while not line.ended:
        line.call(100.0)
    line.until(line.now + 1.5)
    line.call(10.0)
    assert line.call(2000.0).outcome == "refused", "others were turned away a moment ago"
    line.until(line.now + 20.0)
    line.call(10.0)
    assert line.call(2000.0).outcome == "", "and now nobody was for ten seconds"
    assert first.outcome == "ok"


def test_without_a_target_nothing_is_held_back() -> None:
    line = Line(ttft=None).taught()
    assert [line.call(1000.0).state for _ in range(20)] == [RUNNING] * 20


def test_a_pace_that_is_too_slow_lowers_the_limit_and_one_that_is_not_raises_it() -> None:
    state = AIMD(tpot=0.05).state()
    for second in range(3):
        state.paced(100, 6.0, 40, float(second))
    assert state.n == 32  # 40, then 36
    before = state.n
    for second in range(3, 8):
        state.paced(100, 4.0, 30, float(second))
    assert state.n > before
    state = AIMD().state()
    for second in range(5):
        state.paced(100, 6.0, 40, float(second))
    assert state.n == float("inf"), "nobody asked for a pace"


@pytest.mark.parametrize("target", [{"ttft": 0}, {"tpot": -1.0}, {"ttft": float("inf")}])
def test_targets_are_seconds(target: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        AIMD(**target)  # type: ignore[arg-type]
