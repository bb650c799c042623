"""Marks how far a GPU has come, so that the host can wait for that and for no more."""

from __future__ import annotations

from typing import Any, cast

import torch


def recorded_event(device: torch.device) -> Any:
    """A CUDA event that is reached when the device has done what this thread's stream has of it by now.

    Recorded without a stream it would stand in one of the thread's current device: with several GPUs that may be another,
    and the host would read what is not there yet.
    """
    event = cast(Any, torch.cuda).Event()  # ships no types
    event.record(torch.cuda.current_stream(device))
    return event
