"""Sizes from the machine: threads of plain functions, queue lengths and time-outs.

The table is that of the asynchronous-processing source system: below 4 cores one thread a core and 60 s; 4 to 16
cores 1.5 a core and 300 s; above, 2 a core and 600 s. The presets pin a row: "edge" the first, "cloud" the last. Its
queue lengths (50, 100, 200) apply with a preset; otherwise queues are bounded by bytes and predicted wait.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from penstock.errors import ConfigError

Profile = Literal["edge", "cloud"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a runtime uses where a service does not say. Seconds; `queue_items=None` means the policy's default."""

    threads: int
    queue_items: int | None
    start_timeout: float
    progress_timeout: float


def usable_cores() -> int:
    """Cores this process may run on, within the control group's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores


def sizes(profile: Profile | None = None, cores: int | None = None) -> Sizes:
    """The row of the table for this machine, or of a preset."""
    n = usable_cores() if cores is None else cores
    if profile == "edge":
        return Sizes(n, 50, 60.0, 60.0)
    if profile == "cloud":
        return Sizes(min(2 * n, 100), 200, 600.0, 600.0)
    if profile is not None:
        raise ConfigError(f'profile={profile!r}: "edge", "cloud" or None')
    if n < 4:
        return Sizes(n, None, 60.0, 60.0)
    if n <= 16:
        return Sizes(int(1.5 * n), None, 300.0, 300.0)
    return Sizes(min(2 * n, 100), None, 600.0, 600.0)
