"""Attention over a part of the keys, with what it takes to put the parts together: the log of the softmax's sum."""

from __future__ import annotations

import functools
import logging
import math
import warnings
from typing import Any

import torch
from torch import Tensor

_aten: Any = torch.ops.aten
_HALF = frozenset({torch.float16, torch.bfloat16})
_MAX_FLASH_DIM = 256
_log = logging.getLogger(__name__)
_MAX_KERNEL_DIFFERENCE = 1e-2
_BIAS_ALIGNMENT = 8  # of the efficient kernel, in elements


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, causal: bool = False, scale: float
) -> tuple[Tensor, Tensor]:
    """Attends to some of the keys.

    Args:
        query: [rows, heads, queries, dim].
        key: [rows, kv heads, keys, dim]; heads are a multiple of kv heads.
        value: As the key.
        mask: Added to the scores, finite, [rows or 1, heads or 1, 1, keys].
        causal: Query i sees the keys up to i.
        scale: Of the scores.

    Returns:
        The result in the query's type, and [rows, heads, queries] in float32: the log of the sum of exp(scores).
    """
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    if query.dtype is torch.float64:
        return _plain(query, key, value, mask, causal, scale)
    if query.device.type == "cpu":
        bias = None if mask is None else _expanded(mask, query, key)
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=scale
        )
        return out, lse
    if mask is None and query.dtype in _HALF and query.shape[-1] <= _MAX_FLASH_DIM:
        if _cudnn_agrees(query.device, query.dtype, query.shape[-1]):
            return _cudnn(query, key, value, causal, scale)
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)
        return out, lse
    bias = None if mask is None else _expanded(_aligned(mask), query, key)
    out, lse, *_ = _aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, causal, scale=scale
    )
    return out, lse[:, :, : query.shape[2]]


def _cudnn(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = _aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, causal, False, scale=scale
    )
    return out, lse.reshape(query.shape[:3])


@functools.cache
def _cudnn_agrees(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Whether cuDNN's kernel, the faster one on Hopper, is there and gives what the flash kernel gives, sums included."""
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 256, dim, generator=generator, device=device, dtype=dtype).unbind(0)
    scale = dim**-0.5
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out, lse = _cudnn(query, key, value, False, scale)
    except RuntimeError as error:
        _log.info("cuDNN's attention is not used: %s", error)
        return False
    expected, sums, *_ = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False, scale=scale)
    close = (out - expected).abs().max() < _MAX_KERNEL_DIFFERENCE and (lse - sums).abs().max() < _MAX_KERNEL_DIFFERENCE
    return bool(close)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as something to add to scores; finite, so that a part whose keys are all masked weighs nothing when merged."""
    low = torch.finfo(dtype).min / 4
    if mask.dtype is torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, low)
    return mask.to(dtype).clamp(min=low)


class Merged:
    """Adds up the parts of an attention, in float32. Owner: one call.

    Args:
        like: The query.

    Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Liu et al. 2023, Ring Attention.
    """

    def __init__(self, like: Tensor) -> None:
        self._dtype = like.dtype
        wide = torch.float64 if like.dtype is torch.float64 else torch.float32
        self._out = torch.zeros(like.shape, dtype=wide, device=like.device)
        self._lse = torch.full(like.shape[:-1], -math.inf, dtype=wide, device=like.device)
        self._is_empty = True

    def add(self, out: Tensor, lse: Tensor, queries: slice) -> None:
        """Adds a part for some of the queries."""
        view, old = self._out[:, :, queries], self._lse[:, :, queries]
        if self._is_empty:
            view.copy_(out)
            old.copy_(lse)
        else:
            # The share of the new part in the sum; 1 for queries that had none.
            view.lerp_(out.to(view.dtype), torch.sigmoid(lse - old).unsqueeze(-1))
            old.copy_(torch.logaddexp(old, lse))
        self._is_empty = False

    @property
    def result(self) -> Tensor:
        """The whole, in the query's type."""
        return self._out.to(self._dtype)


def _plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores + mask
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp() @ value, lse


def _aligned(mask: Tensor) -> Tensor:
    """The same values with rows that begin where the kernel may read them."""
    missing = -mask.shape[-1] % _BIAS_ALIGNMENT
    return torch.nn.functional.pad(mask, (0, missing))[..., : mask.shape[-1]]


def _expanded(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
