"""How much memory the cache may take when nobody says."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_CPU_DEFAULT_BYTES = 1 << 30


def default_kv_cache_bytes(device: torch.device) -> int:
    """1 GiB on CPU, at most half of what is free; on other devices 80% of what is free."""
    if device.type == "cpu":
        return min(_CPU_DEFAULT_BYTES, free_memory_bytes() // 2)
    free, _total = torch.cuda.mem_get_info(device)
    return int(free * 0.8)


def free_memory_bytes() -> int:
    """Memory that can be had without swapping; the kernel's own estimate where it gives one."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
