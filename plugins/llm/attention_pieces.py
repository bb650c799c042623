"""What the CPU kernels of attention share: steps of a running softmax over one row of queries, in float32."""

from __future__ import annotations

from typing import Any

from sixfold.core.runtime.jit import F32, piece, round_to_bfloat16

NO_SCORE = F32(-3e38)
"""Below every score, and still a number."""


@piece
def add_shares(total: Any, shares: Any, tokens: Any, count: int, dim: int) -> None:
    """Adds the values of some tokens, each times its share of the weight, to a row's total."""
    for t in range(count):
        share = shares[t]
        for i in range(dim):
            total[i] += share * tokens[t, i]


@piece
def clear_row(row: Any, dim: int) -> None:
    """Zeroes a row."""
    for i in range(dim):
        row[i] = F32(0)


@piece
def scale_row(row: Any, factor: Any, dim: int) -> None:
    """Multiplies a row by a number."""
    for i in range(dim):
        row[i] *= factor


@piece
def write_mean(result: Any, total: Any, total_bits: Any, weight: Any, dim: int) -> None:
    """Divides a row's total by its weight and writes it as bfloat16; ``total_bits`` is the memory of ``total``."""
    scale_row(total, F32(1) / weight, dim)
    round_to_bfloat16(result, total_bits, dim)
