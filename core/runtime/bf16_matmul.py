"""Products of bfloat16 rows with packed weights, for CPUs whose widest bfloat16 instruction is AVX512's dot product.

oneDNN reaches six tenths of such a machine's peak where few rows meet a weight (the steps of a language model), and all of
it where many do. Here one kernel serves all row counts: weights lie in panels of 32 columns that are read once from the first
to the last byte, and a tile of up to 12 rows keeps its 24 sums in registers. What follows a product (bias, residual,
activation, the gate of an MLP) is done on each tile while it is in the first-level cache.

Sources: the tile is that of Goto and van de Geijn 2008; the order of the pairs in a panel is what VDPBF16PS wants (Intel's
manual, volume 2).
"""

from __future__ import annotations

import functools
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from sixfold.core.runtime.bf16_dots import gelu_16, has_bf16_dot, round_16, round_32, silu_16, tile
from sixfold.core.runtime.jit import (
    F32,
    U32,
    bits,
    get_num_threads,
    has_openmp,
    kernel,
    piece,
    round_to_bfloat16,
    widen,
)

PANEL_COLUMNS = 32
_TILE_ROWS = 12

NONE = np.empty(0, F32)
"""Stands for no bias."""
_NO_ROWS = np.empty((0, 0), np.uint16)


class After(IntEnum):
    """What is done with each sum before it is rounded."""

    NOTHING = 0
    ADD = 1  # the other operand
    MULTIPLY = 2  # likewise
    SILU = 3
    GELU = 4  # the exact one
    GATE = 5  # silu of the first half of each panel, times the second half
    ADD_GATE = 6  # the other operand, as wide as the panels, and then as above


@functools.cache
def is_fastest() -> bool:
    """Whether this CPU has the instruction, and not AMX, with which oneDNN is several times faster."""
    cpu: Any = torch.cpu
    return bool(has_openmp() and has_bf16_dot() and not cpu._is_amx_tile_supported())


_tile_1, _tile_2, _tile_3, _tile_4 = tile(1), tile(2), tile(3), tile(4)
_tile_5, _tile_6, _tile_7, _tile_8 = tile(5), tile(6), tile(7), tile(8)
_tile_9, _tile_10, _tile_11, _tile_12 = tile(9), tile(10), tile(11), tile(12)


@piece
def _multiply_tile(
    count: Any, rows: Any, row_bytes: Any, panel: Any, num_pairs: Any, sums: Any, next_0: Any, next_1: Any
) -> None:
    # numba has no tables of intrinsics
    if count == 12:
        _tile_12(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)
    elif count == 11:
        _tile_11(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)
    elif count == 10:
        _tile_10(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)
    elif count == 9:
        _tile_9(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)
    elif count == 8:
        _tile_8(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)
    elif count == 7:
        _tile_7(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)
    elif count == 6:
        _tile_6(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)
    elif count == 5:
        _tile_5(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)
    elif count == 4:
        _tile_4(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)
    elif count == 3:
        _tile_3(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)
    elif count == 2:
        _tile_2(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)
    else:
        _tile_1(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)


@kernel
def _multiply(
    rows: Any, panels: Any, bias: Any, other: Any, result: Any, after: Any, row_parts: Any, column_parts: Any
) -> None:
    num_rows, dim = rows.shape
    num_panels, num_pairs = panels.shape[0], panels.shape[1]
    num_columns = result.shape[1]
    width = 16 if after >= 5 else 32
    num_tiles = (num_rows + 11) // 12
    for part in prange(row_parts * column_parts):
        row_part, column_part = part // column_parts, part % column_parts
        sums, scratch = np.empty((12, 32), F32), np.empty(32, F32)
        sums_bits, scratch_bits = sums.view(U32), scratch.view(U32)
        for p in range(column_part * num_panels // column_parts, (column_part + 1) * num_panels // column_parts):
            column = p * width
            count = min(width, num_columns - column)
            first_tile, last_tile = row_part * num_tiles // row_parts, (row_part + 1) * num_tiles // row_parts
            for t in range(first_tile, last_tile):
                first = t * num_rows // num_tiles
                tile_rows = (t + 1) * num_rows // num_tiles - first
                # The next panel is fetched by the first tiles of this one: with one tile both lines of a pair by it, with
                # more one line by each of the first two.
                next_0 = next_1 = 0
                if last_tile - first_tile == 1:
                    next_0, next_1 = num_pairs * 128, num_pairs * 128 + 64
                elif t - first_tile < 2:
                    next_0 = next_1 = num_pairs * 128 + 64 * (t - first_tile)
                _multiply_tile(
                    tile_rows,
                    np.uint64(rows.ctypes.data) + np.uint64(first * dim * 2),
                    dim * 2,
                    np.uint64(panels.ctypes.data) + np.uint64(p * num_pairs * 128),
                    num_pairs,
                    np.uint64(sums.ctypes.data),
                    next_0,
                    next_1,
                )
                for r in range(tile_rows):
                    row = sums[r]
                    row_at = np.uint64(row.ctypes.data)
                    if len(bias):
                        for i in range(32):
                            row[i] += bias[p * 32 + i]
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
                            widen(scratch_bits, other[first + r, p * 32 :], 32)
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


class PackedWeight:
    """A weight in panels; `multiply` maps rows with it.

    Args:
        weight: [out_features, in_features], bfloat16; in_features must be even.
        bias: [out_features], or None.
        gate: [out_features, in_features], as ``weight``: then results are ``silu(x @ gate.T) * (x @ weight.T)``, and
            there is no bias.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gate: Tensor | None = None) -> None:
        assert weight.dtype is torch.bfloat16 and weight.shape[1] % 2 == 0, "see can_pack"
        assert gate is None or (bias is None and gate.shape == weight.shape), "a gate is as large, and has no bias"
        self.out_features, self.in_features = weight.shape
        self.gated = gate is not None
        self.panels = _panels(weight if gate is None else side_by_side(gate, weight))
        self._bias: Any = NONE
        if bias is not None:
            padding = (0, -self.out_features % PANEL_COLUMNS)
            self._bias = torch.nn.functional.pad(bias.detach().float(), padding).contiguous().numpy()

    def multiply(self, x: Tensor, *, after: After = After.NOTHING, other: Tensor | None = None) -> Tensor:
        """[..., in_features] to [..., out_features], bfloat16.

        Args:
            x: bfloat16.
            after: Done with each sum before it is rounded; `After.GATE` or `After.ADD_GATE` for a gated weight and no other.
            other: [..., out_features], for those that take another operand; for `After.ADD_GATE` as wide as the rows of
                `side_by_side`. Never changed.
        """
        if x.shape[-1] != self.in_features or x.dtype is not torch.bfloat16:
            raise ValueError(f"{tuple(x.shape)} of {x.dtype} is not [..., {self.in_features}] of bfloat16")
        rows = x.reshape(-1, self.in_features)
        result = torch.empty(*x.shape[:-1], self.out_features, dtype=torch.bfloat16)
        if len(rows) == 0 or self.out_features == 0:
            return result
        threads = get_num_threads()
        column_parts = min(threads, len(self.panels))
        row_parts = min(threads // column_parts, -(-len(rows) // _TILE_ROWS))
        run = _multiply.serial if threads == 1 else _multiply.parallel
        run(
            bits(rows.contiguous()),
            self.panels,
            self._bias,
            _NO_ROWS if other is None else bits(other.reshape(len(rows), -1).contiguous()),
            bits(result).reshape(-1, self.out_features),
            int(after),
            row_parts,
            column_parts,
        )
        return result


def side_by_side(gate: Tensor, weight: Tensor) -> Tensor:
    """Halves of panels by turns: 16 rows of the gate, then the same 16 of the weight; [2 * padded rows, in_features]."""
    padding = (0, 0, 0, -len(weight) % 16)
    halves = [torch.nn.functional.pad(part.detach(), padding).view(-1, 16, part.shape[1]) for part in (gate, weight)]
    return torch.stack(halves, dim=1).reshape(-1, weight.shape[1])


def _panels(weight: Tensor) -> Any:
    """[panels, pairs, 2 * 32] of the weight's bits, each pair of neighbours in a row side by side, on a cache line's start."""
    weight = torch.nn.functional.pad(weight.detach(), (0, 0, 0, -len(weight) % PANEL_COLUMNS))
    pairs = weight.view(torch.uint16).view(-1, PANEL_COLUMNS, weight.shape[1] // 2, 2).transpose(1, 2)
    memory = torch.empty(pairs.numel() + 32, dtype=torch.uint16)
    start = -memory.data_ptr() % 64 // 2
    aligned = memory[start : start + pairs.numel()].view(pairs.shape)
    aligned.copy_(pairs)
    return aligned.view(len(pairs), pairs.shape[1], 2 * PANEL_COLUMNS).numpy()
