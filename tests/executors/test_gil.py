"""The verdict on threads that the GIL serialises, on figures as they are read from threads."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from penstock.executors import gil
from penstock.executors.gil import GilWatch, Meter, Reading, serialised


@pytest.mark.parametrize(
    ("awake", "window", "bound"),
    [
        (4.0, Reading(ran=1.0, queued=0.02, probes=16, waits=14), True),  # four threads that compute in Python
        (2.0, Reading(ran=0.98, queued=0.1, probes=8, waits=3), True),  # two
        (4.0, Reading(ran=0.5, queued=0.6, probes=16, waits=9), True),  # ... on a core that others want too
        (4.0, Reading(ran=3.9, queued=0.0, probes=16, waits=0), False),  # native code on four cores
        (4.0, Reading(ran=1.0, queued=3.0, probes=16, waits=8), False),  # ... on one: they wait for it, not for the GIL
        (4.0, Reading(ran=0.01, queued=0.0, probes=16, waits=0), False),  # they sleep
        (4.0, Reading(ran=1.0, queued=0.0, probes=16, waits=1), False),  # ... three quarters of the time
        (1.1, Reading(ran=1.0, queued=0.0, probes=8, waits=5), False),  # one at a time has work
    ],
)
def test_three_signs_must_agree(awake: float, window: Reading, bound: bool) -> None:
    assert serialised(awake, window, 1.0) is bound
    assert serialised(awake, Reading(*(3 * figure for figure in window)), 3.0) is bound


class Recorded(Meter):
    """A thread whose figures are given."""

    __slots__ = ("total",)

    def reading(self) -> Reading:
        return self.total


def test_the_verdict_stands_until_the_next_window_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(gil.time, "perf_counter", lambda: now)
    monkeypatch.setattr(gil.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    meters = [Recorded(), Recorded()]
    watch = GilWatch(meters, lambda: 2)
    serial, parallel = (0.5, 0.0, 8, 6), (1.0, 0.0, 8, 0)
    total, verdicts = [0.0] * 4, []
    for step in range(1, 41):
        rate = serial if step <= 24 else parallel
        now = step / 8
        total = [figure + each / 8 for figure, each in zip(total, rate, strict=True)]
        for meter in meters:
            meter.total = Reading(*total)
        verdicts.append(watch.bound())
    assert verdicts == [False] * 8 + [True] * 24 + [False] * 8


@pytest.mark.parametrize(("cores", "threads"), [({0}, 2), ({0, 1}, 1)])
def test_who_cannot_be_serialised_is_not_probed(monkeypatch: pytest.MonkeyPatch, cores: set[int], threads: int) -> None:
    monkeypatch.setattr(gil.os, "sched_getaffinity", lambda _: cores, raising=False)
    meters = [Meter() for _ in range(threads)]
    watch = GilWatch(meters, lambda: threads)
    assert all(meter.next_probe == float("inf") for meter in meters)
    assert not watch.bound()


def probed(hold: bool) -> Meter:
    """A meter after one probe in a thread of its own; meanwhile this thread holds the GIL, or does not."""
    meter = Meter()

    def probe() -> None:
        meter.attach()
        meter.probe()

    before = sys.getswitchinterval()
    sys.setswitchinterval(0.05)
    try:
        thread = threading.Thread(target=probe)
        thread.start()
        while hold and thread.is_alive():
            pass
        thread.join()
    finally:
        sys.setswitchinterval(before)
    return meter


def test_a_probe_sees_who_holds_the_gil() -> None:
    """One probe may be wrong: who should hold the GIL has no core just then, or the whole machine stands still."""
    assert any(probed(hold=True).waits for _ in range(50))
    assert any(not probed(hold=False).waits for _ in range(50))
    assert probed(hold=False).probes == 1


def test_the_figures_are_those_of_the_kernel() -> None:
    meter = Meter()
    meter.attach()
    began, before = time.thread_time(), meter.reading()
    while time.thread_time() - began < 0.05:
        pass
    after = meter.reading()
    assert after.ran - before.ran == pytest.approx(time.thread_time() - began, abs=0.02)
    assert after.queued >= before.queued
