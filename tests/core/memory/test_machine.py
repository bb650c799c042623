from __future__ import annotations

import os
from pathlib import Path

import pytest

from sixfold.core.memory.machine import Device, Machine, available_host_bytes, host_bytes, process_bytes


def fake_root(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 600 kB\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_without_a_control_group_the_host_has_all_its_memory(tmp_path: Path) -> None:
    root = fake_root(tmp_path, {})
    assert host_bytes(root) == 1000 * 1024
    assert available_host_bytes(root) == 600 * 1024


@pytest.mark.parametrize(
    ("group", "limit_file"),
    [
        ("0::/a/b\n", "sys/fs/cgroup/a/b/memory.max"),
        ("0::/a/b\n", "sys/fs/cgroup/a/memory.max"),  # the limit of the group above holds too
        ("0::/system.slice/docker-12.scope\n", "sys/fs/cgroup/memory.max"),  # as a container sees its own group
        ("5:cpu:/x\n7:memory:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes"),
    ],
)
def test_the_control_group_limits_the_host(tmp_path: Path, group: str, limit_file: str) -> None:
    root = fake_root(tmp_path, {"proc/self/cgroup": group, limit_file: "4096\n"})
    assert host_bytes(root) == 4096


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n"])
def test_a_control_group_without_a_limit_limits_nothing(tmp_path: Path, limit: str) -> None:
    root = fake_root(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": limit})
    assert host_bytes(root) == 1000 * 1024


def test_a_process_has_memory_until_it_is_gone() -> None:
    found = process_bytes(os.getpid())
    assert found is not None and found > 1 << 20
    assert process_bytes(2**22 + 1) is None


def test_auto_is_the_first_gpu_or_the_host() -> None:
    cpu = Device(name="cpu", total_bytes=1, has_bfloat16=True)
    gpu = Device(name="cuda:0", total_bytes=1, has_bfloat16=True)
    assert Machine(devices=(cpu, gpu)).resolve("auto") == "cuda:0"
    assert Machine(devices=(cpu,)).resolve("auto") == "cpu"
    assert Machine(devices=(cpu,)).resolve("cuda:3") == "cuda:3"
