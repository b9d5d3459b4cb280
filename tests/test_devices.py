"""Probes: the machine's memory within its control groups, and kinds of devices that are registered."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from penstock import devices
from penstock.errors import ConfigError

MIB = 1 << 20


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_the_machine_itself(tmp_path: Path) -> None:
    reading = devices.host("host", tmp_path / "none", tmp_path)
    assert 0 < reading.free <= reading.total == psutil.virtual_memory().total
    assert devices.memory("host").total <= reading.total  # type: ignore[union-attr]


def test_limits_of_control_groups_v2_from_ours_to_the_root(tmp_path: Path) -> None:
    groups, mount = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text("0::/app/worker\n")
    group(mount / "app/worker", memory__max="max", memory__current=30 * MIB)
    group(
        mount / "app",
        memory__max=100 * MIB,
        memory__current=60 * MIB,
        memory__stat=f"anon {1 * MIB}\ninactive_file {20 * MIB}",
    )
    group(mount)
    assert devices.host("host", groups, mount) == (60 * MIB, 100 * MIB)
    group(mount / "app/worker", memory__high=50 * MIB)
    assert devices.host("host", groups, mount) == (20 * MIB, 50 * MIB)
    group(mount / "app/worker", memory__current=70 * MIB)
    assert devices.host("host", groups, mount).free == 0


def test_a_container_sees_its_limit_at_the_root(tmp_path: Path) -> None:
    groups, mount = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text("0::/\n")
    group(mount, memory__max=64 * MIB, memory__current=10 * MIB)
    assert devices.host("host", groups, mount) == (54 * MIB, 64 * MIB)


def test_limits_of_control_groups_v1(tmp_path: Path) -> None:
    groups, mount = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/y\n")
    group(
        mount / "memory/docker/abc",
        memory__limit_in_bytes=80 * MIB,
        memory__usage_in_bytes=50 * MIB,
        memory__stat=f"cache 0\ntotal_inactive_file {5 * MIB}",
    )
    group(mount / "memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=50 * MIB)
    assert devices.host("host", groups, mount) == (35 * MIB, 80 * MIB)


def test_any_device_by_its_own_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_probes", dict(devices._probes))
    with pytest.raises(ConfigError, match=r"'xpu:1' .*cpu, cuda, host.*register"):
        devices.memory("xpu:1")
    seen = []

    def probe(device: str) -> tuple[int, int]:
        seen.append(device)
        return 3, 8

    devices.register("xpu", probe)
    assert devices.memory("xpu:1") == devices.Reading(free=3, total=8)
    assert seen == ["xpu:1"]
    devices.register("xpu", lambda device: None)
    assert devices.memory("xpu:1") is None
    with pytest.raises(ConfigError, match="before its colon"):
        devices.register("xpu:1", probe)


def test_a_cuda_device_that_is_not_there_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.memory("cuda:0") is None
