"""Names the device that a replica runs on."""

from __future__ import annotations

import importlib.util


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
