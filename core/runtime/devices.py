"""Names the device of a replica, binds threads to it, and says how much of it the replica has. Used in workers only."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any


def resolve_device(device: str) -> str:
    """``auto`` becomes the first CUDA device that works, else ``cpu``; a named device stays. Called in the worker only.

    Models that do not use torch get ``cpu`` for ``auto`` where torch is not installed.
    """
    if device != "auto":
        return device
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch  # heavy: only a worker pays for it

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def use_device(device: str) -> None:
    """Makes a GPU the calling thread's own; called first in every thread that computes, and harmless again.

    CUDA's current device is a thread's, and in a new one it is the first GPU: what names no device would go there.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda" or not int(index or 0):
        return  # a new thread has the first GPU, and to ask for it would take memory beside an engine's own processes
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if int(index) < torch.cuda.device_count():  # of one that is not there the loader tells
        torch.cuda.set_device(int(index))


def device_bytes(device: str) -> int | None:
    """What torch has taken of a GPU in this process, its reserve included; None where torch did not touch one.

    Engines that run in processes of their own are not seen.
    """
    if not device.startswith("cuda") or "torch" not in sys.modules:
        return None
    import torch

    cuda: Any = torch.cuda  # typed in part
    return int(cuda.memory_reserved(device)) if cuda.is_initialized() else None
