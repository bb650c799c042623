"""Hands tensors from one CUDA stream to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor


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
    kind: Any = type(like)
    return kind(items)


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
