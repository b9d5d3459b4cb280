"""What every test may use, and a summary of what was left out."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# How fast a machine is, or how busy, is no property of the code.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("penstock")

# A shell without job control starts what is to run beside it with Ctrl-C ignored, and children would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = 240  # seconds
REQUIRE_ALL = os.environ.get("PENSTOCK_REQUIRE_ALL") == "1"


def _required(report):
    """Where everything is to run (CI), what is skipped is a failure: a part that should be there is missing."""
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, but PENSTOCK_REQUIRE_ALL=1: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items):
    """Whole demos first: at the end one worker would wait for the last of them."""
    items.sort(key=lambda item: "test_demo" not in item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Every wait has an end, also the poll for what never comes; a storm takes as long as its seeds."""
    if "storm" in item.nodeid or "/sim/" in item.nodeid:
        return (yield)

    def over(number, frame):
        raise TimeoutError(f"{item.nodeid} was not done within {LONGEST} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(LONGEST)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _required((yield))  # a module that leaves itself out


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    seeds = os.environ.get("PENSTOCK_SEEDS", "1000")
    terminalreporter.write_line(f"core storms: {seeds} seeds (PENSTOCK_SEEDS); long storms: make soak")
    if skipped:
        terminalreporter.write_line(f"left out: {len(skipped)} tests; -rs lists them with reasons")
