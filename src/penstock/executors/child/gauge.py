"""The memory of this process, here and on its devices, as far as the system and what the user has imported tell."""

from __future__ import annotations

import os
import sys
from typing import Any


def resident_mib() -> int:
    """What is resident of this process."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except (OSError, ValueError, IndexError):
        return 0


def device_bytes() -> tuple[int, int, int] | None:
    """Bytes on the devices that torch uses here: in tensors, reserved by its allocator, and the most there were in tensors."""
    torch: Any = sys.modules.get("torch")
    for kind in ("cuda", "xpu"):
        try:
            device = getattr(torch, kind)
            if device.is_initialized():
                numbers = range(device.device_count())
                used, reserved, peak = device.memory_allocated, device.memory_reserved, device.max_memory_allocated
                return sum(map(used, numbers)), sum(map(reserved, numbers)), sum(map(peak, numbers))
        except (AttributeError, RuntimeError):  # not imported to its end, or an older one
            continue
    return None
