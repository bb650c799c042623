"""Measures how fast two GPUs of this machine exchange, in a process of its own: nobody else must hold a context on each."""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
from typing import Any

_log = logging.getLogger(__name__)
_TIMEOUT_S = 60.0
_NUM_BYTES = 128 << 20
_NUM_COPIES = 8


@functools.cache
def measured_link(num_devices: int) -> float | None:
    """Bytes a second from one GPU to the next, the slowest pair; None where it can't be measured. Blocks for seconds."""
    if num_devices < 2:
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sixfold.core.parallel.link", str(num_devices)],
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT_S,
        )
        return float(json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, OSError, ValueError, IndexError, TypeError) as error:
        _log.warning("the link between the GPUs can't be measured, what is usual is assumed: %s", error)
        return None


def measure(num_devices: int) -> float:
    """Bytes a second of the slowest pair. Makes a context on each device."""
    import torch

    event: Any = torch.cuda.Event
    rates: list[float] = []
    for first in range(num_devices - 1):
        source = torch.empty(_NUM_BYTES, dtype=torch.uint8, device=f"cuda:{first}")
        target = torch.empty(_NUM_BYTES, dtype=torch.uint8, device=f"cuda:{first + 1}")
        target.copy_(source)
        torch.cuda.synchronize(first)
        torch.cuda.synchronize(first + 1)
        begin, end = (event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(first):
            begin.record()
            for _ in range(_NUM_COPIES):
                target.copy_(source, non_blocking=True)
            end.record()
            end.synchronize()
        rates.append(_NUM_BYTES * _NUM_COPIES / (begin.elapsed_time(end) / 1e3))
    return min(rates)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
