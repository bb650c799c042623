"""Triton kernels between the products of a transformer's layer on GPUs, and attention over sequences laid end to end.

Between two products a stock layer runs up to a dozen kernels that each read and write the whole batch; these are one each.
Nothing here depends on values on the host, so all of it can be captured in a CUDA graph. The kernels run on a CPU, too,
under Triton's interpreter (``TRITON_INTERPRET=1``); that is how tests hold them to plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sixfold.core.runtime import triton_layers

_KERNELS: Any = triton_layers  # typed as Triton's decorators leave them

_GATE_COLUMNS = 1024
_ROTATED_HEADS = 8  # of one program: 2 KiB at heads of 128, enough loads in flight


@dataclass(frozen=True, slots=True)
class Tile:
    """How much one program of `attend_spans` does at once, and how Triton builds it.

    Attributes:
        rows: Queries: rows of the batch times ``heads``; a power of 2, at least 16.
        keys: Looked at in one go; a power of 2, at least 16.
        warps: That share the work.
        stages: Blocks of keys that are on their way or in use.
        heads: That share the program, a power of 2, where the model has so many for a kv head: keys are read once for all.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    heads: int = 1


TILES: dict[tuple[int, bool], Tile] = {
    (128, True): Tile(rows=64, keys=32, warps=4, stages=3, heads=2),
    (64, False): Tile(rows=128, keys=64, warps=8, stages=3),
    (32, False): Tile(rows=64, keys=32, warps=4, stages=3),
}
"""By head dim and whether attention is causal, for half precision: the fastest on an H200 (``bench/gpu/attention.py``)."""
TILE = Tile(rows=64, keys=64, warps=4, stages=3)
WIDE_TILE = Tile(rows=64, keys=32, warps=4, stages=2)


@dataclass(frozen=True, slots=True)
class Spans:
    """Which rows of a flat batch each row sees.

    Attributes:
        starts: [rows] integers, the first row of its sequence; the number of rows for padding behind the last sequence.
        ends: [rows] likewise, the row behind its sequence; the number of rows for padding.
    """

    starts: Tensor
    ends: Tensor


def attend_spans(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    *,
    scaling: float,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Attention of each row to the rows of its own sequence.

    A program takes a tile of neighbouring rows, whatever sequences they belong to, and walks over the keys that any of
    them sees. So the grid depends on the number of rows alone, which a graph needs, and short sequences share a tile.

    Args:
        query: [rows, heads, head dim], last dimension contiguous.
        key: [rows, kv heads, head dim], likewise.
        value: As ``key``.
        spans: By row.
        scaling: Factor on the scores.
        causal: Whether a row sees no row behind it.
        window: A row sees rows less than this far away; None for all.

    Returns:
        [rows, heads, head dim], contiguous; zeros for padding. Infinite values spread to rows of other sequences in their
        tile.
    """
    num_rows, num_heads, dim = query.shape
    padded = max(16, _power_of_2(dim))
    tile = WIDE_TILE if query.dtype is torch.float32 or padded > 128 else TILES.get((padded, causal), TILE)
    group = num_heads // key.shape[1]
    packed = tile.heads if group % tile.heads == 0 else 1
    output = query.new_empty(num_rows, num_heads, dim)
    _KERNELS.attend_spans_kernel[(num_heads // packed, -(-num_rows * packed // tile.rows))](
        query,
        key,
        value,
        spans.starts,
        spans.ends,
        output,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        num_rows,
        scaling,
        HEADS=num_heads,
        GROUP=group,
        DIM=dim,
        DIM_PADDED=padded,
        ROWS=tile.rows,
        KEYS=tile.keys,
        PACKED=packed,
        CAUSAL=causal,
        WINDOW=window or 0,
        PRECISION="ieee" if query.dtype is torch.float32 else "tf32",
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return output


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of [rows, dim] contiguous rows, in float32 inside.

    Args:
        x: Rows.
        weight: [dim].
        eps: Added to the mean square.
    """
    output = torch.empty_like(x)
    dim = x.shape[1]
    _KERNELS.rms_norm_kernel[(len(x),)](x, weight, output, eps, DIM=dim, DIM_PADDED=_power_of_2(dim))
    return output


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of ``x + residual``, in float32 inside.

    Args:
        x: [rows, dim], contiguous.
        residual: Likewise.
        weight: [dim].
        bias: [dim].
        eps: Added to the variance.
    """
    output = torch.empty_like(x)
    dim = x.shape[1]
    _KERNELS.add_layer_norm_kernel[(len(x),)](
        x, residual, weight, bias, output, eps, DIM=dim, DIM_PADDED=_power_of_2(dim)
    )
    return output


def silu_gate(opened: Tensor, x: Tensor, eps: float) -> Tensor:
    """``silu(gate) * up`` of rows that were opened without the RMS norm before: its factor of each row is made up for here.

    So the norm needs no kernel and no pass over memory of its own; its weights are part of the product's.

    Args:
        opened: [rows, 2 * dim], contiguous, the gate first: products of ``x``.
        x: [rows, width], contiguous.
        eps: Added to the mean square of a row of ``x``.

    Returns:
        [rows, dim].
    """
    dim, width = opened.shape[1] // 2, x.shape[1]
    output = opened.new_empty(len(opened), dim)
    _KERNELS.gate_kernel[(len(opened), -(-dim // _GATE_COLUMNS))](
        opened, x, output, eps, DIM=dim, COLUMNS=_GATE_COLUMNS, WIDTH=width, WIDTH_PADDED=_power_of_2(width)
    )
    return output


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norms of single heads: [head dim] each."""

    query: Tensor
    key: Tensor
    eps: float


def rotate_heads(
    qkv: Tensor, cos: Tensor, sin: Tensor, *, num_heads: int, num_kv_heads: int, norms: HeadNorms | None
) -> None:
    """Norms the queries and keys of each head, where the model does, and turns them by their position; in place.

    Args:
        qkv: [rows, (heads + 2 * kv heads) * head dim], contiguous: all queries, all keys, all values of a row.
        cos: [rows, head dim], contiguous.
        sin: Likewise.
        num_heads: Of the queries.
        num_kv_heads: Of the keys.
        norms: None for a model without.
    """
    half = cos.shape[1] // 2
    query, key, eps = (qkv, qkv, 0.0) if norms is None else (norms.query, norms.key, norms.eps)
    _KERNELS.rotate_kernel[(len(qkv), -(-(num_heads + num_kv_heads) // _ROTATED_HEADS))](
        qkv,
        cos,
        sin,
        query,
        key,
        eps,
        qkv.stride(0),
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        HALF=half,
        HALF_PADDED=_power_of_2(half),
        BLOCK=_ROTATED_HEADS,
        NORMED=norms is not None,
    )


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
