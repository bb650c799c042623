"""Hands tensors from one CUDA stream to another, and keeps the host near the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from sixfold.core.runtime.events import recorded_event


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in cast("Mapping[str, Any]", value).values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in cast("list[Any]", value):
            yield from tensors_in(item)


def new_stream(device: torch.device) -> Any:
    """A CUDA stream of its own."""
    stream: Any = torch.cuda.Stream
    return stream(device)


def rebuilt(like: Any, items: Iterable[Any]) -> Any:
    """A list or tuple of the same kind."""
    return like.__class__(items)


def recreated(like: Any, items: dict[str, Any]) -> Any:
    """A mapping of the same kind, such as a library's class of outputs."""
    return like.__class__(**items)


def hand_over(value: Any, *, source: Any, target: Any, wait: bool = True) -> None:
    """Makes the tensors of one stream safe to use in another.

    Args:
        value: Containers of tensors.
        source: Their stream.
        target: Where they will be used; their memory is not given out again before that is done.
        wait: Whether the target must wait until they are computed.
    """
    if wait:
        target.wait_stream(source)
    for tensor in tensors_in(value):
        if tensor.is_cuda:
            tensor.record_stream(target)


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Pace:
    """Keeps the host at most one forward ahead of the device: the next step's work is laid out while this one is computed,
    but who arrives need not wait for a queue of steps that nobody can leave, and the time of a step is the device's.

    Args:
        device: On others than CUDA nothing is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: Any = None
        self._last_but_one: Any = None

    def wait(self) -> None:
        """Before a forward: until the one before the last is done."""
        if self._last_but_one is not None:
            self._last_but_one.synchronize()

    def mark(self) -> None:
        """After a forward was given to the device."""
        if self._device.type == "cuda":
            self._last_but_one, self._last = self._last, recorded_event(self._device)
