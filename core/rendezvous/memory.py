"""What to do when a forward runs out of memory: free what the failed try held, then let a smaller one be tried."""

from __future__ import annotations

import gc
import traceback

import torch

from sixfold.core.errors import StepFailed


class OutOfMemory(StepFailed):
    """The step needs more memory than the device has free; another request's share was not touched."""

    default_code = "out_of_memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is torch's own out-of-memory error, of a device or of the CPU's allocator."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def free_memory(error: BaseException, device: torch.device) -> OutOfMemory:
    """Drops the tensors of the failed forward and returns the error for the client."""
    # The traceback holds the frames, and these the tensors of every layer that ran.
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return OutOfMemory("The model ran out of memory on this request alone. Ask for less or smaller output.")
