"""bfloat16 kernels for CPUs where torch runs several of its own for one thing, or a slow one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from sixfold.core.runtime.jit import F32, U32, bits, kernel, round_to_bfloat16, widen

# Below this many elements the second thread takes longer to wake than it saves.
_PARALLEL_ELEMENTS = 65_536


def can_run(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels of this module take tensors of this device and type."""
    return device.type == "cpu" and dtype is torch.bfloat16


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divides each row by its root mean square and multiplies it by the weight, rounding once.

    Args:
        x: [rows, dim], bfloat16, contiguous.
        weight: [dim], float32.
        eps: Added to the mean square.

    Source: Zhang and Sennrich 2019.
    """
    result = torch.empty_like(x)
    run = _rms_norm.serial if x.numel() < _PARALLEL_ELEMENTS else _rms_norm.parallel
    run(bits(x), weight.numpy(), F32(eps), bits(result))
    return result


@kernel
def _rms_norm(x: Any, weight: Any, eps: Any, result: Any) -> None:
    num_rows, dim = x.shape
    num_chunks = min(num_rows, 16)
    for chunk in prange(num_chunks):
        row = np.empty(dim, F32)
        row_bits = row.view(U32)
        for r in range(chunk * num_rows // num_chunks, (chunk + 1) * num_rows // num_chunks):
            widen(row_bits, x[r], dim)
            total = F32(0)
            for i in range(dim):
                total += row[i] * row[i]
            scale = F32(1) / np.sqrt(total / F32(dim) + eps)
            for i in range(dim):
                row[i] = row[i] * scale * weight[i]
            round_to_bfloat16(result[r], row_bits, dim)
