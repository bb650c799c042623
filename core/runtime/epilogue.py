"""What is done with the sums of a product while they are in the first-level cache; shared by all products of this project."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from sixfold.core.runtime.bf16_dots import gelu_16, round_16, round_32, silu_16
from sixfold.core.runtime.jit import piece, round_to_bfloat16, widen

PANEL_COLUMNS = 32
"""Columns of one tile of sums."""


class After(IntEnum):
    """What is done with each sum before it is rounded."""

    NOTHING = 0
    ADD = 1  # the other operand
    MULTIPLY = 2  # likewise
    SILU = 3
    GELU = 4  # the exact one
    GATE = 5  # silu of the first half of each panel, times the second half
    ADD_GATE = 6  # the other operand, as wide as the panels, and then as above


@piece
def finish(
    sums: Any,
    sums_bits: Any,
    scratch: Any,
    scratch_bits: Any,
    tile_rows: Any,
    first: Any,
    panel: Any,
    bias: Any,
    other: Any,
    result: Any,
    after: Any,
) -> None:
    """Writes a tile of sums to the result: bias, what `After` says, and one rounding.

    Args:
        sums: [rows, 32], float32; overwritten.
        sums_bits: The same memory as uint32.
        scratch: [32], float32; overwritten.
        scratch_bits: The same memory as uint32.
        tile_rows: How many rows of it there are.
        first: The result's row where they begin.
        panel: Which panel of columns they are.
        bias: Of all panels, or empty.
        other: As large as the result (as the panels, for `After.ADD_GATE`), bfloat16 bits, where there is another operand.
        result: Written; bfloat16 bits.
        after: See `After`.
    """
    num_columns = result.shape[1]
    width = 16 if after >= 5 else 32
    column = panel * width
    count = min(width, num_columns - column)
    for r in range(tile_rows):
        row = sums[r]
        row_at = np.uint64(row.ctypes.data)
        if len(bias):
            for i in range(32):
                row[i] += bias[panel * 32 + i]
        if after == 1:
            widen(scratch_bits, other[first + r, column:], count)
            for i in range(count):
                row[i] += scratch[i]
        elif after == 2:
            widen(scratch_bits, other[first + r, column:], count)
            for i in range(count):
                row[i] *= scratch[i]
        elif after == 3:
            silu_16(row_at)
            silu_16(row_at + np.uint64(64))
        elif after == 4:
            gelu_16(row_at)
            gelu_16(row_at + np.uint64(64))
        elif after >= 5:
            if after == 6:
                widen(scratch_bits, other[first + r, panel * 32 :], 32)
                for i in range(32):
                    row[i] += scratch[i]
            silu_16(row_at)
            for i in range(16):
                row[i] *= row[16 + i]
        to = np.uint64(result.ctypes.data) + np.uint64(2 * ((first + r) * num_columns + column))
        if count == 32:
            round_32(row_at, to)
        elif count == 16:
            round_16(row_at, to)
        else:
            round_to_bfloat16(result[first + r, column:], sums_bits[r], count)
