"""Conversions between arrays, lists and tensors, with the types that torch's own signatures leave open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy.typing as npt
import torch
from torch import Tensor


def to_tensor(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device; on CPU without a copy. Does not wait for what the device computes."""
    host = torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
    return host.to(device, non_blocking=True)


def index_tensor(values: Sequence[int], device: torch.device) -> Tensor:
    """[n] int64. Does not wait for what the device computes."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


def float_tensor(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """[n]. Does not wait for what the device computes."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def int_list(tensor: Tensor) -> list[int]:
    """Values of a one-dimensional tensor of integers."""
    return cast("list[int]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]  # untyped in torch


def float_list(tensor: Tensor) -> list[float]:
    """Values of a one-dimensional tensor of floats."""
    return cast("list[float]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]  # untyped in torch


def bool_list(tensor: Tensor) -> list[bool]:
    """Values of a one-dimensional tensor of booleans."""
    return cast("list[bool]", tensor.tolist())  # pyright: ignore[reportUnknownMemberType]  # untyped in torch


def host_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous uint8 tensor on the host, without a copy."""
    array: npt.NDArray[Any] = tensor.numpy()
    return array.data.cast("B")


def from_bytes(data: memoryview, row_bytes: int) -> Tensor:
    """[rows, row_bytes] uint8 over writable memory, without a copy."""
    return torch.frombuffer(data, dtype=torch.uint8).view(-1, row_bytes)  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
