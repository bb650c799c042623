"""Chooses the low-rank adapters of a shared module for each of its forwards: they are state of the module, not of a call."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Adapters = tuple[tuple[str, float], ...]
"""Names of adapters with their scales, in order; () is the module as it is."""


class AdapterSwitch:
    """The adapters of one module. One forward at a time holds it, so that no thread changes them under another.

    Args:
        layers: The module's adapted layers, of the peft library.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = tuple(layers)
        self._lock = threading.Lock()
        self._chosen: Adapters | None = None

    @contextmanager
    def using(self, chosen: Adapters) -> Generator[None]:
        """The module's forwards inside are with these adapters, as ``set_adapters`` of the diffusers library sets them."""
        with self._lock:
            if chosen != self._chosen:
                self._choose(chosen)
            yield

    def _choose(self, chosen: Adapters) -> None:
        self._chosen = None  # if a layer fails half-way, the next forward sets all of them anew
        names = [name for name, _ in chosen]
        for layer in self._layers:
            layer.enable_adapters(bool(chosen))
            if not chosen:
                continue
            layer.set_adapter(names, inference_mode=True)
            for name, scale in chosen:
                layer.set_scale(name, scale)
        self._chosen = chosen


def adapted_layers(module: torch.nn.Module) -> list[Any]:
    """The layers of a module that have adapters; [] without any. Needs the peft library."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
