"""Products of bfloat16 rows with weights of 8 or 4 bits, for CPUs with AVX512-VNNI and AVX512-BF16.

Few rows are bound by the weights' bytes, so fewer bytes are faster. Two ways to multiply share one layout (`byte_dots`):

- exact inputs: each panel is widened to bfloat16 in the cache, and multiplied as in `bf16_matmul`;
- quantized inputs: each row's groups of 32 are rounded to 8 bits, and bytes are multiplied: twice as many at a time.

Either way a row's result is the same to the bit whatever rows are beside it.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import torch
from numba import prange
from torch import Tensor

from sixfold.core.runtime.bf16_dots import has_bf16_dot
from sixfold.core.runtime.bf16_matmul import NO_ROWS, NONE, TILE_ROWS, multiply_tile, side_by_side
from sixfold.core.runtime.byte_dots import (
    GROUP,
    ROW_GROUP_BYTES,
    block_bytes,
    byte_tile,
    has_byte_dot,
    widen_4,
    widen_8,
)
from sixfold.core.runtime.epilogue import PANEL_COLUMNS, After, finish
from sixfold.core.runtime.jit import F32, I32, U32, bits, get_num_threads, has_openmp, kernel, piece, widen

Bits = Literal[4, 8]

_BYTE_TILE_ROWS = 6  # 12 sums of integers and 12 of groups: as many as there are registers for

# Below this many numbers the second thread takes longer to wake than it saves.
_PARALLEL_ELEMENTS = 65_536
# Weights are quantized in parts, so that their float32 copies stay small.
_PART_PANELS = 64


@functools.cache
def has_byte_products() -> bool:
    """Whether this CPU runs these kernels."""
    return has_openmp() and has_bf16_dot() and has_byte_dot()


_w8_1, _w8_2, _w8_3, _w8_4, _w8_5, _w8_6 = (byte_tile(rows, 8) for rows in range(1, 7))
_w4_1, _w4_2, _w4_3, _w4_4, _w4_5, _w4_6 = (byte_tile(rows, 4) for rows in range(1, 7))


@piece
def _multiply_8(count: Any, rows: Any, row_bytes: Any, panel: Any, num_groups: Any, sums: Any, ahead: Any) -> None:
    if count == 6:
        _w8_6(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 5:
        _w8_5(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 4:
        _w8_4(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 3:
        _w8_3(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 2:
        _w8_2(rows, row_bytes, panel, num_groups, sums, ahead)
    else:
        _w8_1(rows, row_bytes, panel, num_groups, sums, ahead)


@piece
def _multiply_4(count: Any, rows: Any, row_bytes: Any, panel: Any, num_groups: Any, sums: Any, ahead: Any) -> None:
    if count == 6:
        _w4_6(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 5:
        _w4_5(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 4:
        _w4_4(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 3:
        _w4_3(rows, row_bytes, panel, num_groups, sums, ahead)
    elif count == 2:
        _w4_2(rows, row_bytes, panel, num_groups, sums, ahead)
    else:
        _w4_1(rows, row_bytes, panel, num_groups, sums, ahead)


@kernel
def _quantize_rows(rows: Any, numbers: Any, factors: Any, sums: Any) -> None:
    """bfloat16 rows to what `byte_dots.byte_tile` reads: the three arrays are one memory, seen as int8, float32 and int32."""
    num_rows, dim = rows.shape
    num_groups = numbers.shape[1]
    num_chunks = min(num_rows, 64)
    for chunk in prange(num_chunks):
        wide, whole = np.empty(32, F32), np.empty(32, I32)
        wide_bits = wide.view(U32)
        for r in range(chunk * num_rows // num_chunks, (chunk + 1) * num_rows // num_chunks):
            for g in range(num_groups):
                count = min(32, dim - 32 * g)
                for i in range(count, 32):
                    wide[i] = F32(0)
                widen(wide_bits, rows[r, 32 * g :], count)
                top = F32(0)
                for i in range(32):
                    top = max(top, abs(wide[i]))
                inverse = F32(127) / top if top > F32(1e-30) else F32(0)
                total = I32(0)
                for i in range(32):
                    whole[i] = I32(np.rint(wide[i] * inverse))
                    total += whole[i]
                for i in range(32):
                    numbers[r, g, i] = np.int8(whole[i])
                scale = top / F32(127)
                factors[r, g, 8] = scale
                factors[r, g, 9] = scale * F32(total)
                sums[r, g, 10] = I32(-128) * total


@kernel
def _multiply_bytes(
    rows: Any,
    panels: Any,
    num_bits: Any,
    bias: Any,
    other: Any,
    result: Any,
    after: Any,
    row_parts: Any,
    column_parts: Any,
) -> None:
    num_rows, row_bytes = rows.shape
    num_groups = row_bytes // 48
    num_panels, panel_bytes = panels.shape
    num_tiles = (num_rows + 5) // 6
    for part in prange(row_parts * column_parts):
        row_part, column_part = part // column_parts, part % column_parts
        sums, scratch = np.empty((6, 32), F32), np.empty(32, F32)
        sums_bits, scratch_bits = sums.view(U32), scratch.view(U32)
        first_tile, last_tile = row_part * num_tiles // row_parts, (row_part + 1) * num_tiles // row_parts
        for p in range(column_part * num_panels // column_parts, (column_part + 1) * num_panels // column_parts):
            panel = np.uint64(panels.ctypes.data) + np.uint64(p * panel_bytes)
            for t in range(first_tile, last_tile):
                first = t * num_rows // num_tiles
                tile_rows = (t + 1) * num_rows // num_tiles - first
                here = np.uint64(rows.ctypes.data) + np.uint64(first * row_bytes)
                ahead = panel_bytes if t == first_tile else 0  # the next panel is fetched by the first tile of this one
                if num_bits == 8:
                    _multiply_8(tile_rows, here, row_bytes, panel, num_groups, np.uint64(sums.ctypes.data), ahead)
                else:
                    _multiply_4(tile_rows, here, row_bytes, panel, num_groups, np.uint64(sums.ctypes.data), ahead)
                finish(sums, sums_bits, scratch, scratch_bits, tile_rows, first, p, bias, other, result, after)


@kernel
def _multiply_widened(
    rows: Any,
    panels: Any,
    num_bits: Any,
    bias: Any,
    other: Any,
    result: Any,
    after: Any,
    row_parts: Any,
    column_parts: Any,
) -> None:
    num_rows, dim = rows.shape
    num_panels, panel_bytes = panels.shape
    num_groups, num_pairs = (dim + 31) // 32, dim // 2
    num_tiles = (num_rows + 11) // 12
    for part in prange(row_parts * column_parts):
        row_part, column_part = part // column_parts, part % column_parts
        sums, scratch = np.empty((12, 32), F32), np.empty(32, F32)
        sums_bits, scratch_bits = sums.view(U32), scratch.view(U32)
        memory = np.empty(num_groups * 2048 + 64, np.uint8)
        pairs = (np.uint64(memory.ctypes.data) + np.uint64(63)) & ~np.uint64(63)
        first_tile, last_tile = row_part * num_tiles // row_parts, (row_part + 1) * num_tiles // row_parts
        for p in range(column_part * num_panels // column_parts, (column_part + 1) * num_panels // column_parts):
            panel = np.uint64(panels.ctypes.data) + np.uint64(p * panel_bytes)
            if num_bits == 8:
                widen_8(panel, num_groups, pairs, panel_bytes)
            else:
                widen_4(panel, num_groups, pairs, panel_bytes)
            for t in range(first_tile, last_tile):
                first = t * num_rows // num_tiles
                tile_rows = (t + 1) * num_rows // num_tiles - first
                here = np.uint64(rows.ctypes.data) + np.uint64(first * dim * 2)
                multiply_tile(tile_rows, here, dim * 2, pairs, num_pairs, np.uint64(sums.ctypes.data), 0, 64)
                finish(sums, sums_bits, scratch, scratch_bits, tile_rows, first, p, bias, other, result, after)


class QuantizedWeight:
    """A weight of 8 or 4 bits in panels; `multiply` maps rows with it.

    Args:
        weight: [out_features, in_features], any float type; in_features must be even.
        bias: [out_features], or None.
        num_bits: 8: symmetric, a scale for each group of 32 inputs. 4: with an offset, too.
        exact_inputs: False rounds rows to 8 bits before the product, in groups of 32.
        gate: As ``weight``: then results are ``silu(x @ gate.T) * (x @ weight.T)``, and there is no bias.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, num_bits: Bits, exact_inputs: bool, gate: Tensor | None = None
    ) -> None:
        assert weight.shape[1] % 2 == 0, "see can_quantize"
        assert gate is None or (bias is None and gate.shape == weight.shape), "a gate is as large, and has no bias"
        self.out_features, self.in_features = weight.shape
        self.num_bits: Bits = num_bits
        self.exact_inputs = exact_inputs
        self.panels = _panels(weight if gate is None else side_by_side(gate, weight), num_bits)
        self._bias: Any = NONE
        if bias is not None:
            padding = (0, -self.out_features % PANEL_COLUMNS)
            self._bias = torch.nn.functional.pad(bias.detach().float(), padding).contiguous().numpy()

    @property
    def num_bytes(self) -> int:
        """Memory of weight and bias, scales and padding included."""
        return int(self.panels.nbytes + self._bias.nbytes)

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
        tile_rows = TILE_ROWS if self.exact_inputs else _BYTE_TILE_ROWS
        row_parts = min(threads // column_parts, -(-len(rows) // tile_rows))
        multiply = _multiply_widened if self.exact_inputs else _multiply_bytes
        run = multiply.serial if threads == 1 else multiply.parallel
        inputs = bits(rows.contiguous())
        run(
            inputs if self.exact_inputs else quantize_rows(inputs),
            self.panels,
            self.num_bits,
            self._bias,
            NO_ROWS if other is None else bits(other.reshape(-1, self.out_features).contiguous()),
            bits(result).reshape(-1, self.out_features),
            int(after),
            row_parts,
            column_parts,
        )
        return result


def quantize_rows(rows: Any) -> Any:
    """[rows, dim] of bfloat16 bits to [rows, bytes] as `byte_dots.byte_tile` reads them."""
    num_groups = -(-rows.shape[1] // GROUP)
    numbers = np.empty((len(rows), num_groups, ROW_GROUP_BYTES), np.int8)
    run = _quantize_rows.serial if rows.size < _PARALLEL_ELEMENTS else _quantize_rows.parallel
    run(rows, numbers, numbers.view(F32), numbers.view(I32))
    return numbers.reshape(len(rows), -1)


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
