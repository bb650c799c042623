"""Products of bfloat16 rows with weights of 8 or 4 bits, for CPUs with AVX512-VNNI and AVX512-BF16.

Few rows are bound by the weights' bytes, so fewer bytes are faster. Each row's groups of 32 are turned into bytes that share a
scale, and bytes are multiplied: with one plane of bytes twice as many at a time as bfloat16 pairs. A second plane keeps what
the first rounds away, so that only the weights are quantized; it costs a second product of the same bytes.

A row's result is the same to the bit whatever rows are beside it.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import torch
from numba import prange
from torch import Tensor

from sixfold.core.runtime.bf16_dots import has_bf16_dot
from sixfold.core.runtime.bf16_matmul import NO_ROWS, NONE, side_by_side
from sixfold.core.runtime.byte_dots import (
    GROUP,
    block_bytes,
    byte_tile,
    has_byte_dot,
    quantize_8,
    quantize_15,
    row_group_bytes,
)
from sixfold.core.runtime.epilogue import PANEL_COLUMNS, After, finish
from sixfold.core.runtime.jit import F32, U32, bits, get_num_threads, has_openmp, kernel, piece

Bits = Literal[4, 8]

# Below this many numbers the second thread takes longer to wake than it saves.
_PARALLEL_ELEMENTS = 65_536
# Weights are quantized in parts, so that their float32 copies stay small.
_PART_PANELS = 64


@functools.cache
def has_byte_products() -> bool:
    """Whether this CPU runs these kernels."""
    return has_openmp() and has_bf16_dot() and has_byte_dot()


# As many rows to a tile as there are registers for: two sums of integers for each row and plane, and two of groups.
_w8_1_1, _w8_1_2, _w8_1_3, _w8_1_4, _w8_1_5, _w8_1_6 = (byte_tile(rows, 8, 1) for rows in range(1, 7))
_w8_2_1, _w8_2_2, _w8_2_3, _w8_2_4 = (byte_tile(rows, 8, 2) for rows in range(1, 5))
_w4_1_1, _w4_1_2, _w4_1_3, _w4_1_4, _w4_1_5, _w4_1_6 = (byte_tile(rows, 4, 1) for rows in range(1, 7))
_w4_2_1, _w4_2_2, _w4_2_3, _w4_2_4 = (byte_tile(rows, 4, 2) for rows in range(1, 5))
_TILE_ROWS = {1: 6, 2: 4}


@piece
def _tile_8_1(count: Any, rows: Any, row_bytes: Any, panel: Any, num_groups: Any, sums: Any, ahead: Any) -> None:
    if count == 6:
        _w8_1_6(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 5:
        _w8_1_5(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 4:
        _w8_1_4(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 3:
        _w8_1_3(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 2:
        _w8_1_2(rows, row_bytes, panel, num_groups, sums, ahead)
    else:
        _w8_1_1(rows, row_bytes, panel, num_groups, sums, ahead)


@piece
def _tile_8_2(count: Any, rows: Any, row_bytes: Any, panel: Any, num_groups: Any, sums: Any, ahead: Any) -> None:
    if count == 4:
        _w8_2_4(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 3:
        _w8_2_3(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 2:
        _w8_2_2(rows, row_bytes, panel, num_groups, sums, ahead)
    else:
        _w8_2_1(rows, row_bytes, panel, num_groups, sums, ahead)


@piece
def _tile_4_1(count: Any, rows: Any, row_bytes: Any, panel: Any, num_groups: Any, sums: Any, ahead: Any) -> None:
    if count == 6:
        _w4_1_6(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 5:
        _w4_1_5(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 4:
        _w4_1_4(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 3:
        _w4_1_3(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 2:
        _w4_1_2(rows, row_bytes, panel, num_groups, sums, ahead)
    else:
        _w4_1_1(rows, row_bytes, panel, num_groups, sums, ahead)


@piece
def _tile_4_2(count: Any, rows: Any, row_bytes: Any, panel: Any, num_groups: Any, sums: Any, ahead: Any) -> None:
    if count == 4:
        _w4_2_4(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 3:
        _w4_2_3(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 2:
        _w4_2_2(rows, row_bytes, panel, num_groups, sums, ahead)
    else:
        _w4_2_1(rows, row_bytes, panel, num_groups, sums, ahead)


@kernel
def _quantize_rows(rows: Any, result: Any, num_planes: Any) -> None:
    num_rows, dim = rows.shape
    num_chunks = min(num_rows, 64)
    num_whole = dim // 32
    group_bytes = 32 * num_planes + 16
    for chunk in prange(num_chunks):
        last = np.zeros(32, np.uint16)
        for r in range(chunk * num_rows // num_chunks, (chunk + 1) * num_rows // num_chunks):
            to = np.uint64(result.ctypes.data) + np.uint64(r * result.shape[1])
            for g in range((dim + 31) // 32):
                group = np.uint64(rows.ctypes.data) + np.uint64(2 * (r * dim + 32 * g))
                if g == num_whole:
                    for i in range(dim - 32 * g):
                        last[i] = rows[r, 32 * g + i]
                    group = np.uint64(last.ctypes.data)
                if num_planes == 1:
                    quantize_8(group, to + np.uint64(group_bytes * g))
                else:
                    quantize_15(group, to + np.uint64(group_bytes * g))


@kernel
def _multiply(
    rows: Any,
    panels: Any,
    num_bits: Any,
    num_planes: Any,
    bias: Any,
    other: Any,
    result: Any,
    after: Any,
    row_parts: Any,
    column_parts: Any,
) -> None:
    num_rows, row_bytes = rows.shape
    num_groups = row_bytes // (32 * num_planes + 16)
    num_panels, panel_bytes = panels.shape
    most = 6 if num_planes == 1 else 4
    num_tiles = (num_rows + most - 1) // most
    for part in prange(row_parts * column_parts):
        row_part, column_part = part // column_parts, part % column_parts
        sums, scratch = np.empty((6, 32), F32), np.empty(32, F32)
        sums_bits, scratch_bits = sums.view(U32), scratch.view(U32)
        to = np.uint64(sums.ctypes.data)
        first_tile, last_tile = row_part * num_tiles // row_parts, (row_part + 1) * num_tiles // row_parts
        for p in range(column_part * num_panels // column_parts, (column_part + 1) * num_panels // column_parts):
            panel = np.uint64(panels.ctypes.data) + np.uint64(p * panel_bytes)
            for t in range(first_tile, last_tile):
                first = t * num_rows // num_tiles
                count = (t + 1) * num_rows // num_tiles - first
                here = np.uint64(rows.ctypes.data) + np.uint64(first * row_bytes)
                ahead = panel_bytes if t == first_tile else 0  # the next panel is fetched by the first tile of this one
                if num_bits == 8 and num_planes == 1:
                    _tile_8_1(count, here, row_bytes, panel, num_groups, to, ahead)
                elif num_bits == 8:
                    _tile_8_2(count, here, row_bytes, panel, num_groups, to, ahead)
                elif num_planes == 1:
                    _tile_4_1(count, here, row_bytes, panel, num_groups, to, ahead)
                else:
                    _tile_4_2(count, here, row_bytes, panel, num_groups, to, ahead)
                finish(sums, sums_bits, scratch, scratch_bits, count, first, p, bias, other, result, after)


class QuantizedWeight:
    """A weight of 8 or 4 bits in panels; `multiply` maps rows with it.

    Args:
        weight: [out_features, in_features], any float type; in_features must be even.
        bias: [out_features], or None.
        num_bits: 8: symmetric, a scale for each group of 32 inputs. 4: with an offset, too.
        keeps_inputs: Whether rows keep their accuracy: 15 bits for each group of 32, where bfloat16 has 8. Else they are
            rounded to 8 bits for each group.
        gate: As ``weight``: then results are ``silu(x @ gate.T) * (x @ weight.T)``, and there is no bias.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, num_bits: Bits, keeps_inputs: bool, gate: Tensor | None = None
    ) -> None:
        assert weight.shape[1] % 2 == 0, "see can_quantize"
        assert gate is None or (bias is None and gate.shape == weight.shape), "a gate is as large, and has no bias"
        self.out_features, self.in_features = weight.shape
        self.num_bits: Bits = num_bits
        self._num_planes = 2 if keeps_inputs else 1
        self.panels = _panels(weight if gate is None else side_by_side(gate, weight), num_bits)
        self._bias: Any = NONE
        if bias is not None:
            padding = (0, -self.out_features % PANEL_COLUMNS)
            self._bias = torch.nn.functional.pad(bias.detach().float(), padding).contiguous().numpy()

    def multiply(self, x: Tensor, *, after: After = After.NOTHING, other: Tensor | None = None) -> Tensor:
        """See `PackedWeight.multiply`."""
        if x.shape[-1] != self.in_features or x.dtype is not torch.bfloat16:
            raise ValueError(f"{tuple(x.shape)} of {x.dtype} is not [..., {self.in_features}] of bfloat16")
        rows = x.reshape(-1, self.in_features)
        result = torch.empty(*x.shape[:-1], self.out_features, dtype=torch.bfloat16)
        if len(rows) == 0 or self.out_features == 0:
            return result
        threads = get_num_threads()
        column_parts = min(threads, len(self.panels))
        row_parts = min(threads // column_parts, -(-len(rows) // _TILE_ROWS[self._num_planes]))
        run = _multiply.serial if threads == 1 else _multiply.parallel
        run(
            _quantized(bits(rows.contiguous()), self._num_planes),
            self.panels,
            self.num_bits,
            self._num_planes,
            self._bias,
            NO_ROWS if other is None else bits(other.reshape(len(rows), -1).contiguous()),
            bits(result).reshape(-1, self.out_features),
            int(after),
            row_parts,
            column_parts,
        )
        return result


def _quantized(rows: Any, num_planes: int) -> Any:
    """[rows, dim] of bfloat16 bits to [rows, bytes] as `byte_tile` reads them."""
    result = np.empty((len(rows), -(-rows.shape[1] // GROUP) * row_group_bytes(num_planes)), np.uint8)
    run = _quantize_rows.serial if rows.size < _PARALLEL_ELEMENTS else _quantize_rows.parallel
    run(rows, result, num_planes)
    return result


def _panels(weight: Tensor, num_bits: Bits) -> Any:
    """[panels, bytes] on a cache line's start; see `byte_dots` for what a panel is."""
    num_panels = -(-len(weight) // PANEL_COLUMNS)
    num_groups = -(-weight.shape[1] // GROUP)
    panel_bytes = num_groups * block_bytes(num_bits)
    memory = torch.empty(num_panels * panel_bytes + 64, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    panels = memory[start : start + num_panels * panel_bytes].view(num_panels, panel_bytes)
    for first in range(0, num_panels, _PART_PANELS):
        part = weight.detach()[first * PANEL_COLUMNS : (first + _PART_PANELS) * PANEL_COLUMNS].float()
        padded = torch.nn.functional.pad(part, (0, -part.shape[1] % GROUP, 0, -len(part) % PANEL_COLUMNS))
        blocks = _blocks(padded.view(-1, PANEL_COLUMNS, num_groups, GROUP), num_bits)
        panels[first : first + _PART_PANELS] = blocks.reshape(len(blocks), -1)
    return panels.numpy()


def _blocks(groups: Tensor, num_bits: Bits) -> Tensor:
    """[panels, 32 columns, groups, 32] of float32 to [panels, groups, bytes]."""
    scale, offset, numbers = quantize_groups(groups, num_bits)
    quads = numbers.view(len(numbers), PANEL_COLUMNS, numbers.shape[2], GROUP // 4, 4).permute(0, 2, 3, 1, 4)
    parts = [scale.transpose(1, 2).contiguous().view(torch.uint8)]
    if num_bits == 8:
        quads = quads.add(128).to(torch.uint8)
    else:
        parts.append(offset.transpose(1, 2).contiguous().view(torch.uint8))
        quads = (quads[:, :, 0::2] | (quads[:, :, 1::2] << 4)).to(torch.uint8)
    parts.append(quads.flatten(2))
    return torch.cat(parts, dim=-1)


def quantize_groups(groups: Tensor, num_bits: Bits) -> tuple[Tensor, Tensor, Tensor]:
    """Rounds numbers that share a scale.

    Args:
        groups: [..., numbers of a group], float32.
        num_bits: 8: ``number * scale``, from -127 to 127. 4: ``number * scale + offset``, from 0 to 15.

    Returns:
        Scale and offset, [...], bfloat16; and the numbers, int32.
    """
    if num_bits == 8:
        low, span, levels = torch.zeros_like(groups[..., 0]), groups.abs().amax(-1), 127
    else:
        low = groups.amin(-1).bfloat16().float()
        span, levels = (groups.amax(-1) - low).clamp(min=0), 15
    scale = _round_up(span / levels)
    wide = scale.float()
    inverse = torch.where(wide > 0, 1 / wide, 0.0)
    numbers = ((groups - low[..., None]) * inverse[..., None]).round().int()
    return scale, low.bfloat16(), numbers.clamp(-127 if num_bits == 8 else 0, levels)


def _round_up(values: Tensor) -> Tensor:
    """To the next bfloat16 that is not smaller: so the largest number of a group is not cut off."""
    rounded = values.bfloat16()
    above = (rounded.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(rounded.float() < values, above, rounded)
