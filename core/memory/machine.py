"""What memory this machine has: the host's, as the container's limit cuts it, and that of its GPUs."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sixfold.core.memory.need import HOST

_log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 60.0
# In a process of its own: the serving process must not hold torch, nor a context on each GPU.
_PROBE = """
import json, torch
n = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps([[torch.cuda.get_device_properties(i).total_memory, torch.cuda.is_bf16_supported(False)] for i in range(n)]))
"""
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86 twice, ARM


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Something that models can be put on.

    Attributes:
        name: ``cpu`` or ``cuda:N``.
        total_bytes: Memory that this server may use of it.
        has_bfloat16: Whether it multiplies bfloat16 natively.
    """

    name: str
    total_bytes: int
    has_bfloat16: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The devices of this server; the host is the first."""

    devices: tuple[Device, ...]

    def device(self, name: str) -> Device | None:
        """The device of this name; None if it is not known here."""
        return next((device for device in self.devices if device.name == name), None)

    def resolve(self, name: str) -> str:
        """``auto`` becomes the first GPU, else ``cpu``, as in a worker (`sixfold.core.runtime.devices`)."""
        if name != "auto":
            return name
        return next((device.name for device in self.devices if device.name != HOST), HOST)


def read_machine(limits: Mapping[str, int]) -> Machine:
    """Looks at this machine. Blocks for seconds where there are GPUs.

    Args:
        limits: What the operator lets this server use of a device, by its name.
    """
    host = Device(name=HOST, total_bytes=host_bytes(), has_bfloat16=cpu_has_bfloat16())
    devices = [host, *cuda_devices()]
    return Machine(
        devices=tuple(
            Device(
                name=device.name,
                total_bytes=min(device.total_bytes, limits.get(device.name, device.total_bytes)),
                has_bfloat16=device.has_bfloat16,
            )
            for device in devices
        )
    )


def with_devices(machine: Machine, sizes: Mapping[str, int]) -> Machine:
    """The machine with devices of other sizes, or with further ones: for plans of another machine than this."""
    known = tuple(
        Device(name=d.name, total_bytes=sizes.get(d.name, d.total_bytes), has_bfloat16=d.has_bfloat16)
        for d in machine.devices
    )
    names = {device.name for device in known}
    further = (Device(name=name, total_bytes=sizes[name], has_bfloat16=True) for name in sorted(sizes.keys() - names))
    return Machine(devices=(*known, *further))


def host_bytes(root: Path = Path("/")) -> int:
    """Host memory that this process may use: the machine's, or what its control group allows of it.

    Args:
        root: Of the file system; another one in tests.
    """
    total = _meminfo_bytes(root, "MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min((total, *_cgroup_limits(root)))


def available_host_bytes(root: Path = Path("/")) -> int:
    """Host memory that can be had without swapping; the kernel's own estimate where it gives one."""
    return _meminfo_bytes(root, "MemAvailable") or host_bytes(root) // 2


def _meminfo_bytes(root: Path, field: str) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _cgroup_limits(root: Path) -> Sequence[int]:
    """The limits of this process's control group and all above it, of either version."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    limits: list[int] = []
    for line in lines:
        _number, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, name = (
            ("sys/fs/cgroup", "memory.max") if not controllers else ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        )
        # In a container the path is the host's, while the mount shows the container's own group as its root.
        path = Path(group.lstrip("/"))
        for folder in (path, *path.parents):
            limit = _read_int(root / base / folder / name)
            if limit is not None:
                limits.append(limit)
    return limits


def _read_int(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group here, or "max"
        return None


def process_bytes(pid: int, root: Path = Path("/")) -> int | None:
    """Host memory that is a process's own now; None when it is gone.

    Pages of files are left out: libraries are shared by all workers, and weights that are used as they lie on disk can be
    read again.
    """
    try:
        lines = (root / "proc" / str(pid) / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    own = [int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(own) if own else None


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16; said by the kernel, so that no torch is needed."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine() == "arm64"
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return bool(_BFLOAT16_FLAGS & set(next(lines, "").split()))


@functools.cache
def cuda_devices() -> tuple[Device, ...]:
    """The GPUs that torch finds; none where there is no driver or no torch."""
    if not Path("/proc/driver/nvidia").exists() or importlib.util.find_spec("torch") is None:
        return ()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True, timeout=_PROBE_TIMEOUT_S
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        _log.warning("the GPUs can't be looked at, their memory is not kept account of: %s", error)
        return ()
    return tuple(
        Device(name=f"cuda:{index}", total_bytes=int(total), has_bfloat16=bool(native))
        for index, (total, native) in enumerate(found)
    )
