"""What an entry of the configuration will take of which device, asked of its family."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from sixfold.core.errors import SixfoldError
from sixfold.core.family import need_of_files
from sixfold.core.memory.machine import Machine, available_host_bytes
from sixfold.core.memory.need import HOST, MemoryNeed, MemoryQuestion
from sixfold.core.registry import ResolvedModel

_log = logging.getLogger(__name__)

_UNKNOWN_BYTES = 1 << 50
"""Of a device that is not known here: everything fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What one replica of a model will take.

    Attributes:
        device: Where it goes: ``auto`` is resolved.
        need: What the family says.
    """

    device: str
    need: MemoryNeed


def forecast(resolved: ResolvedModel, machine: Machine, *, free_bytes: int | None = None) -> Forecast:
    """Asks the family. Blocks while headers are read: call it in a thread.

    Args:
        resolved: The entry with its files.
        machine: The devices.
        free_bytes: Of the model's device; None for what is available now.

    Raises:
        SixfoldError: The files are not what the family needs.
    """
    name = machine.resolve(resolved.entry.device)
    device = machine.device(name)
    total = _UNKNOWN_BYTES if device is None else device.total_bytes
    if free_bytes is None:
        free_bytes = min(total, available_host_bytes()) if name == HOST else total
    question = MemoryQuestion(
        path=resolved.path,
        options=resolved.options,
        device=name,
        num_threads=len(os.sched_getaffinity(0)),
        total_bytes=total,
        free_bytes=free_bytes,
        has_bfloat16=device is not None and device.has_bfloat16,
        quantization=resolved.entry.quantization,
    )
    try:
        need = resolved.family.memory(question)
    except SixfoldError:
        raise
    except Exception:  # a stranger's plugin: its model may still load, so its files are counted
        _log.exception("the family %s can't say what %s takes", resolved.family.name, resolved.entry.name)
        need = need_of_files(question)
    return Forecast(device=name, need=need)
