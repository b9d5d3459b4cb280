"""Slots that are left to tenants below their share, while several are active."""

from __future__ import annotations

import pytest

from penstock.core.headroom import AWAY, reserve
from penstock.core.policy.order import EarliestDeadline, FairShare, Fifo, Order, Priority
from penstock.core.request import QUEUED, RUNNING, Request
from penstock.core.station import Station, StationOptions
from penstock.sim.drive import Drive

LONG = 1000.0


def slots(count: int, order: Order | None = None, streams: bool = True) -> tuple[Drive, Station]:
    drive = Drive(lambda work: LONG if work.requests[0].tenant == "heavy" else 1.0)
    options = StationOptions(
        "model", replicas=count, order=order or Priority(), streams=streams, start_timeout=1e6, progress_timeout=1e6
    )
    return drive, drive.add(options)


def call(drive: Drive, station: Station, tenant: str, count: int = 1) -> list[Request]:
    return [drive.submit(station, Request(f"{tenant}{n}", tenant=tenant)) for n in range(count)]


def running(requests: list[Request]) -> int:
    return sum(request.state == RUNNING for request in requests)


def test_a_lone_tenant_takes_every_slot() -> None:
    drive, station = slots(64)
    assert running(call(drive, station, "heavy", 80)) == 64


def test_a_light_tenant_finds_a_slot_where_a_heavy_one_queues() -> None:
    drive, station = slots(64)
    drive.run(until=1.0)
    call(drive, station, "light")
    drive.run(until=5.0)
    heavy = call(drive, station, "heavy", 100)
    assert running(heavy) == 60, "four of 64 are left"
    light = call(drive, station, "light", 4)
    assert running(light) == 4
    assert call(drive, station, "light")[0].state == QUEUED
    drive.run(until=10.0)
    assert running(heavy) == 60, "the light one's slots are left again when they are free"


def test_what_was_left_is_used_when_the_other_tenant_stays_away() -> None:
    drive, station = slots(32)
    call(drive, station, "light")
    heavy = call(drive, station, "heavy", 40)
    drive.run(until=AWAY / 2)
    assert running(heavy) == 30
    drive.run(until=AWAY + 2.0)
    assert running(heavy) == 32


def test_tenants_within_their_shares_use_all_slots() -> None:
    drive, station = slots(32)
    both = [request for _ in range(40) for tenant in ("heavy", "other") for request in call(drive, station, tenant)]
    assert running(both) == 32
    assert station.headroom is not None and station.headroom.held == {"heavy": 16, "other": 16}


def test_shares_are_by_weight() -> None:
    drive, station = slots(32, FairShare(weights={"heavy": 3.0}))
    call(drive, station, "light")
    assert running(call(drive, station, "heavy", 40)) == 29
    drive, station = slots(32, FairShare(weights={"heavy": 100.0}))
    call(drive, station, "light")
    assert running(call(drive, station, "heavy", 40)) == 31, "all but the one that the other has are its share"


@pytest.mark.parametrize(
    ("order", "streams"), [(Fifo(), True), (Priority(then=EarliestDeadline()), True), (FairShare(), False)]
)
def test_nothing_is_left_where_no_fairness_was_asked_for(order: Order, streams: bool) -> None:
    _, station = slots(32, order, streams)
    assert station.headroom is None


def test_how_much_is_left() -> None:
    assert [reserve(n) for n in (1, 3, 4, 16, 31, 32, 64, 256)] == [0, 0, 1, 1, 1, 2, 4, 16]


def test_starts_of_those_who_hold_less_go_first() -> None:
    drive, station = slots(32)
    heavy = call(drive, station, "heavy", 20)
    light = call(drive, station, "light")[0]
    assert light.work is not None and light.work.early
    assert not any(request.work.early for request in heavy if request.work is not None)
