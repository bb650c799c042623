"""How much memory the cache may take when nobody says."""

from __future__ import annotations

import torch

from sixfold.core.memory.machine import available_host_bytes
from sixfold.plugins.llm.memory_need import GPU_CACHE_SHARE, default_cpu_cache_bytes


def default_kv_cache_bytes(device: torch.device) -> int:
    """1 GiB on CPU, at most half of the free memory; on other devices 80% of what is free."""
    if device.type == "cpu":
        return default_cpu_cache_bytes(available_host_bytes())
    free, _total = torch.cuda.mem_get_info(device)
    return int(free * GPU_CACHE_SHARE)
