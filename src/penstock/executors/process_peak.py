"""How far the memory of a child rose while it ran a work, by the kernel's own high-water mark (Linux).

A child that still holds what an earlier work left (caches of allocators) says too little about the next one, so a reading
counts only where that could hide no more than a twentieth of it.
"""

from __future__ import annotations

import math

from penstock.executors.base import Host
from penstock.executors.process_child import Child
from penstock.executors.process_unit import Unit

_HIDDEN = 0.05


class Peak:
    """The meter of one replica."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pid = 0
        self._idle = self._base = math.inf

    def begin(self, child: Child | None) -> None:
        """The child is about to begin, and runs nothing else."""
        if child is None:
            return
        pid = child.pid
        if pid != self._pid:
            self._pid, self._idle = pid, math.inf
        self._base = _resident(pid, "VmRSS:")
        self._idle = min(self._idle, self._base)
        try:
            with open(f"/proc/{pid}/clear_refs", "w") as file:
                file.write("5")  # the high-water mark starts anew
        except OSError:
            self._base = math.inf

    def report(self, unit: Unit, child: Child) -> None:
        """The work has ended: tell how many bytes it took at its most, where that can be said."""
        if unit.left or child.pid != self._pid or math.isinf(self._base):
            return
        top = _resident(child.pid, "VmHWM:")
        if not math.isinf(top) and self._base - self._idle <= _HIDDEN * (top - self._base):
            self._host.peaked(unit.work, {"host": top - self._base})


def _resident(pid: int, what: str) -> float:
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith(what):
                    return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return math.inf
