"""Devices are any strings: "host", "cuda:0", "mps". A probe for each kind says how much memory one has, and has free.

`register("xpu", probe)` adds a kind, or replaces one. A reading is what a new allocation could still get without swapping
or failing, whoever holds the rest: other processes count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from penstock.errors import ConfigError


class Reading(NamedTuple):
    """Bytes of a device's memory."""

    free: int
    total: int


_Files = tuple[tuple[str, ...], str, str]
_V2: _Files = (("memory.max", "memory.high"), "memory.current", "inactive_file")
_V1: _Files = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")

Probe = Callable[[str], Reading | tuple[int, int] | None]


def register(kind: str, probe: Probe) -> None:
    """Measure devices of this kind ("xpu" for "xpu:0") with `probe(device) -> (free, total)` in bytes.

    It may be called on any thread, and returns None where it cannot tell.
    """
    if not kind or ":" in kind:
        raise ConfigError(f"register({kind!r}): the kind of a device is what stands before its colon")
    _probes[kind] = probe


def memory(device: str) -> Reading | None:
    """What this device has; None if its probe cannot tell. Raises ConfigError for a kind that nobody registered."""
    probe = _probes.get(device.partition(":")[0])
    if probe is None:
        known = ", ".join(sorted(_probes))
        raise ConfigError(f"no probe measures {device!r} (there are {known}); add one: penstock.devices.register(kind, probe)")
    reading = probe(device)
    return None if reading is None else Reading(*reading)


def host(device: str = "host", groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> Reading:
    """This machine's memory, within the limits of the control groups (v2 and v1) that this process is in.

    Page cache that the kernel would give up at once counts as free.
    """
    machine = psutil.virtual_memory()
    free, total = int(machine.available), int(machine.total)
    for limit, used in _groups(groups, mount):
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return Reading(free, total)


def _groups(groups: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be given up) of each group with a limit, from ours to the root."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, (limits, usage, cache) = mount, _V2
        elif "memory" in controllers.split(","):
            root, (limits, usage, cache) = mount / "memory", _V1
        else:
            continue
        inside = root / path.strip("/")
        for folder in (inside, *inside.parents):
            limit = min((n for name in limits if (n := _number(folder / name)) is not None), default=None)
            used = _number(folder / usage)
            if limit is not None and used is not None and limit < 1 << 60:
                yield limit, used - _field(folder / "memory.stat", cache)
            if folder == root:
                break


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _field(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except OSError:
        pass
    return 0


def cuda(device: str) -> Reading | None:
    """An NVIDIA device by CUDA's number, with NVML (`pip install nvidia-ml-py`) or else with torch.

    NVML numbers by PCI bus; where devices differ, CUDA does so only with CUDA_DEVICE_ORDER=PCI_BUS_ID. torch makes a context
    on the device, NVML does not.
    """
    index = int(device.partition(":")[2] or 0)
    try:
        import pynvml
    except ImportError:
        return _torch(index)
    try:
        pynvml.nvmlInit()
        info = pynvml.nvmlDeviceGetMemoryInfo(_handle(pynvml, index))
        return Reading(int(info.free), int(info.total))
    except pynvml.NVMLError:
        return None


def _handle(nvml: Any, index: int) -> Any:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        if index >= len(names) or not names[index]:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_FOUND)
        if not names[index].isdigit():
            return nvml.nvmlDeviceGetHandleByUUID(names[index])
        index = int(names[index])
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _torch(index: int) -> Reading | None:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    return Reading(*torch.cuda.mem_get_info(index))


_probes: dict[str, Probe] = {"host": host, "cpu": host, "cuda": cuda}
