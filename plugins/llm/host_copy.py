"""Brings a result from the device to the host without holding up either until it is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sixfold.core.runtime.events import recorded_event


class HostCopy:
    """A tensor on its way to the host: the copy is begun at once, and waited for when it is read.

    Args:
        tensor: On any device; on a CPU there is nothing to copy.
    """

    __slots__ = ("_copied", "_tensor")

    def __init__(self, tensor: Tensor) -> None:
        self._copied: Any = None
        self._tensor = tensor
        if tensor.is_cuda:
            # Only pinned memory is filled beside the host.
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._copied = recorded_event(tensor.device)

    def wait(self) -> Tensor:
        """The tensor on the host. Other threads run meanwhile."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
        return self._tensor
