"""Reads a flag of a GPU some steps late, so that the GPU never waits for the host to have read it."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from sixfold.core.runtime.events import recorded_event

_STEPS_AHEAD = 2  # of the host: enough that the device never waits for it, and no more steps for nothing at the end


class LateFlag:
    """A flag of the device, read without waiting for what was given to it just now.

    Args:
        device: On others than CUDA the flag is read at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: deque[tuple[Any, Tensor]] = deque()

    def was_set(self, flag: Tensor) -> bool:
        """Whether it was set, on CUDA when it was asked for some steps ago.

        Args:
            flag: [1].
        """
        if self._device.type != "cuda":
            return bool(flag)
        host = torch.empty(1, dtype=flag.dtype, pin_memory=True)
        host.copy_(flag, non_blocking=True)
        self._marks.append((recorded_event(self._device), host))
        if len(self._marks) <= _STEPS_AHEAD:
            return False
        event, host = self._marks.popleft()
        event.synchronize()
        return bool(host)
