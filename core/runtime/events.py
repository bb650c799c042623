"""Marks how far a GPU has come, so that the host can wait for that and for no more; and work that no step waits for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


def recorded_event(device: torch.device) -> Any:
    """A CUDA event that is reached when the device has done what this thread's stream has of it by now.

    Recorded without a stream it would stand in one of the thread's current device: with several GPUs that may be another,
    and the host would read what is not there yet.
    """
    event = cast(Any, torch.cuda).Event()  # ships no types
    event.record(torch.cuda.current_stream(device))
    return event


def made_beside(device: torch.device, make: Callable[[], Tensor]) -> Tensor:
    """What ``make`` gives, made on a stream of its own and done: neither do steps wait for it, nor it for them.

    Args:
        device: Where it is made. Elsewhere than on a GPU this is only a call.
        make: Starts the work; what it reads must be there already.
    """
    if device.type != "cuda":
        return make()
    cuda: Any = torch.cuda  # ships no types
    stream = _second_stream(device)
    with cuda.stream(stream):
        made = make()
    stream.synchronize()
    untyped: Any = made
    untyped.record_stream(cuda.current_stream(device))  # its memory is not given away while a step reads it
    return made


@functools.cache
def _second_stream(device: torch.device) -> Any:
    """One for all: what is freed on a stream is kept for that stream."""
    cuda: Any = torch.cuda  # ships no types
    return cuda.Stream(device)
