"""The worked examples of the first source system, corrected, on the real scheduler in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from penstock.core.policy.order import Fifo
from penstock.core.pool import Pool
from penstock.core.request import Request, Work
from penstock.core.station import Station, StationOptions
from penstock.sim.drive import Drive


def declared(work: Work) -> float:
    return float(work.requests[0].value)


def station(drive: Drive, name: str, replicas: int, **options: object) -> Station:
    return drive.add(StationOptions(name, replicas=replicas, order=Fifo(), start_timeout=1e4, **options))  # type: ignore[arg-type]


def ends(times: list[float], replicas: int) -> list[float]:
    """When each of these calls, all sent at 0, ends."""
    drive = Drive(declared)
    place = station(drive, "resource", replicas)
    calls = [drive.submit(place, Request(value=seconds)) for seconds in times]
    drive.run()
    return [call.ended for call in calls]


def test_four_tasks_on_two_resources() -> None:
    assert max(ends([2, 3, 1, 2], 2)) == 5.0  # first come, first served
    assert max(ends(sorted([2, 3, 1, 2], reverse=True), 2)) == 4.0  # longest first


def test_ten_equal_tasks_on_four_workers() -> None:
    finished = ends([1.0] * 10, 4)
    assert max(finished) == 3.0
    assert sum(finished) / 10 == pytest.approx(1.8)
    alone = ends([1.0] * 10, 1)
    assert sum(alone) / 10 == pytest.approx(5.5)


def test_computing_and_waiting_overlap() -> None:
    drive = Drive(declared)
    compute, wait = station(drive, "cpu", 2), drive.add(StationOptions("io"))
    finished: list[float] = []
    for _ in range(6):
        drive.submit(
            compute,
            Request(value=1.0),
            then=lambda _: drive.submit(wait, Request(value=2.0), then=lambda r: finished.append(r.ended)),
        )
    drive.run()
    assert len(finished) == 6
    assert max(finished) == 5.0


def vla(requests: int, make: Callable[[Drive], dict[str, Station]]) -> tuple[float, Drive]:
    """Vision (3 s) and language (2 s) side by side, then fusion (1 s), then action (1 s)."""
    drive = Drive(declared)
    stages = make(drive)
    seconds = {"vision": 3.0, "language": 2.0, "fusion": 1.0, "action": 1.0}
    finished: list[float] = []

    def one() -> None:
        seen: list[Request] = []

        def joined(request: Request) -> None:
            seen.append(request)
            if len(seen) == 2:
                step("fusion", lambda _: step("action", lambda last: finished.append(last.ended)))

        def step(name: str, then: Callable[[Request], None]) -> None:
            drive.submit(stages[name], Request(value=seconds[name]), then=then)

        step("vision", joined)
        step("language", joined)

    for _ in range(requests):
        one()
    drive.run()
    assert len(finished) == requests
    return max(finished), drive


def pooled(devices: int, language_apart: bool) -> Callable[[Drive], dict[str, Station]]:
    """Every stage has replicas enough, and takes one device while it runs; language may run on a core instead."""

    def make(drive: Drive) -> dict[str, Station]:
        pool = drive.scheduler.pool(Pool("devices", devices))
        names = ("vision", "language", "fusion", "action")
        apart = "language" if language_apart else ""
        return {name: station(drive, name, 4, needs=() if name == apart else ((pool, 1.0),)) for name in names}

    return make


def one_each(drive: Drive) -> dict[str, Station]:
    return {name: station(drive, name, 1) for name in ("vision", "language", "fusion", "action")}


def test_vla_on_four_devices() -> None:
    took, drive = vla(3, pooled(4, language_apart=False))
    assert took == 7.0
    assert sum(drive.busy.values()) / (4 * took) == pytest.approx(0.75)


def test_vla_with_language_on_cores() -> None:
    took, drive = vla(3, pooled(4, language_apart=True))
    assert took == 5.0
    on_devices = sum(seconds for name, seconds in drive.busy.items() if name != "language")
    assert on_devices / (4 * took) == pytest.approx(0.75)


def test_vla_with_one_replica_a_stage() -> None:
    assert vla(3, one_each)[0] == 11.0
    assert vla(100, one_each)[0] == 302.0


def test_a_hundred_vla_requests_on_four_devices() -> None:
    took, _ = vla(100, pooled(4, language_apart=False))
    assert 175.0 <= took <= 1.05 * 175.0  # work / devices is the lower bound
