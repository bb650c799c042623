"""Intrinsics for numba kernels over weights of 8 or 4 bits: AVX512-VNNI's dot product of bytes.

Weights come in panels of 32 columns. A panel is a run of blocks, each of 32 input features (a group): 32 bfloat16 scales, for
4 bits 32 bfloat16 offsets, and then the numbers, four neighbouring input features (a quad) of a column side by side. Numbers of
8 bits are stored plus 128; of 4 bits, the low halves of 128 bytes are one quad of all columns, the high halves the next.

Sources: the groups and what is kept of each are those of llama.cpp's Q8_0 and Q4_1; the instruction is VPDPBUSD of Intel's
manual, volume 2.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from numba import int64, uint64, void
from numba.extending import intrinsic

from sixfold.core.runtime.vector_emitter import BYTES, I32, SUMS, WORDS, Emitter, ir

GROUP = 32
"""Input features that share a scale."""
_QUADS = GROUP // 4
_HIGH_SHIFT = 7  # of the first of two planes: then the second has room for a rounded rest
_SMALLEST = 1e-30  # a group of nothing larger counts as zeros: the inverse of its scale would be infinite


@functools.cache
def has_byte_dot() -> bool:
    """Whether this CPU has AVX512-VNNI."""
    binding: Any = importlib.import_module("llvmlite.binding")
    return bool(binding.get_host_cpu_features().get("avx512vnni"))


def block_bytes(num_bits: int) -> int:
    """Size of one group of a panel's 32 columns."""
    return 64 + 32 * GROUP if num_bits == 8 else 128 + 16 * GROUP


def row_group_bytes(num_planes: int) -> int:
    """Size of one group of a row: its numbers, a plane of signed bytes after the other; its scale, and that times the sum of
    the numbers (float32); -128 times the sum (int32); and 4 bytes that are not used.

    One plane holds numbers from -127 to 127. With two they are the first's times 128 plus the second's, 15 bits in all: more
    than bfloat16 has, for all numbers above a 256th of the group's largest.
    """
    return GROUP * num_planes + 16


class _Block:
    """The parts of one group, loaded where they are wanted."""

    def __init__(self, emitter: Emitter, address: Any, num_bits: int) -> None:
        self._e, self._address, self._bits = emitter, address, num_bits

    def scales(self) -> list[Any]:
        """Of the columns, as two vectors."""
        return self._e.widened(self._address)

    def offsets(self) -> list[Any]:
        """What is added to number times scale."""
        return self._e.widened(self._e.offset(self._address, 64))

    def quads(self) -> list[list[Any]]:
        """Of each quad, two vectors of 16 columns with four unsigned bytes each."""
        e, b = self._e, self._e.builder
        if self._bits == 8:
            at = [[64 + 128 * quad + 64 * half for half in range(2)] for quad in range(_QUADS)]
            return [[e.load(e.offset(self._address, place), WORDS, 64) for place in places] for places in at]
        found: list[list[Any]] = []
        low = e.words(0x0F0F0F0F)
        for pair in range(_QUADS // 2):
            both = [e.load(e.offset(self._address, 128 + 128 * pair + 64 * half), WORDS, 64) for half in range(2)]
            found.append([b.and_(value, low) for value in both])
            found.append([b.and_(b.lshr(value, e.words(4)), low) for value in both])
        return found


def byte_tile(num_rows: int, num_bits: int, num_planes: int) -> Any:
    """An intrinsic ``(rows, row_bytes, panel, num_groups, sums, ahead)``: some quantized rows times a panel.

    rows: Address of the first; each is num_groups times `row_group_bytes`. panel: At the start of a cache line.
    sums: [num_rows, 32], float32, written. ahead: How far from a block those lines lie that are prefetched beside it.
    """
    size, row_size, facts = block_bytes(num_bits), row_group_bytes(num_planes), GROUP * num_planes

    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        rows, row_bytes, panel, num_groups, sums, ahead = arguments
        e = Emitter(builder)
        starts = [e.offset(rows, builder.mul(row_bytes, e.constant(r))) for r in range(num_rows)]

        def whole_sums(block: _Block, inputs: list[Any]) -> list[Any]:
            # Numbers of 8 bits are 128 too large, so a sum begins with what that adds. It is held by the last plane.
            zero = e.words(0)
            first = [e.spread_word(e.offset(at, facts + 8)) if num_bits == 8 else zero for at in inputs]
            planes = [[value if plane == num_planes - 1 else zero for plane in range(num_planes)] for value in first]
            totals = [[[value, value] for value in row] for row in planes]
            for quad, weights in enumerate(block.quads()):
                for r, at in enumerate(inputs):
                    for plane in range(num_planes):
                        spread = e.spread_word(e.offset(at, GROUP * plane + 4 * quad))
                        for half in range(2):
                            totals[r][plane][half] = e.dot_bytes(totals[r][plane][half], weights[half], spread)
            if num_planes == 2:
                shift = e.words(_HIGH_SHIFT)
                return [
                    builder.add(builder.shl(row[0][half], shift), row[1][half]) for row in totals for half in range(2)
                ]
            return [row[0][half] for row in totals for half in range(2)]

        def body(group: Any, held: list[Any]) -> list[Any]:
            here = e.offset(panel, builder.mul(group, e.constant(size)))
            for line in range(size // 64):
                e.prefetch(e.offset(e.offset(here, ahead), 64 * line))
            in_row = builder.mul(group, e.constant(row_size))
            inputs = [e.offset(start, in_row) for start in starts]
            block = _Block(e, here, num_bits)
            totals = whole_sums(block, inputs)
            scales, offsets = block.scales(), block.offsets() if num_bits == 4 else []
            new: list[Any] = []
            for i, value in enumerate(held):
                at, half = inputs[i // 2], i % 2
                factor = builder.fmul(scales[half], builder.bitcast(e.spread_word(e.offset(at, facts)), SUMS))
                value = e.call("fma", builder.sitofp(totals[i], SUMS), factor, value)
                if num_bits == 4:
                    share = builder.bitcast(e.spread_word(e.offset(at, facts + 4)), SUMS)
                    value = e.call("fma", offsets[half], share, value)
                new.append(value)
            return new

        for i, value in enumerate(e.loop(num_groups, [e.zeros()] * (2 * num_rows), body)):
            e.store(value, e.offset(sums, 64 * i), SUMS, 4)
        return context.get_dummy_value()

    def build(_context: Any, rows: Any, row_bytes: Any, panel: Any, num_groups: Any, sums: Any, ahead: Any) -> Any:
        return void(uint64, int64, uint64, int64, uint64, int64), emit

    return intrinsic(build)


def _quantizing(num_planes: int) -> Any:
    levels = 127.0 if num_planes == 1 else 127.0 * 2**_HIGH_SHIFT
    facts = GROUP * num_planes

    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        group, to = arguments
        e = Emitter(builder)
        wide = e.widened(group)
        # The bits of positive numbers are in the numbers' order, and those of what is no number come last.
        sizes = [builder.and_(builder.bitcast(value, WORDS), e.words(0x7FFFFFFF)) for value in wide]
        largest = e.call_words("umax", *sizes)
        top = builder.bitcast(e.reduce_words("umax", largest), ir.FloatType())
        scale = builder.fdiv(top, ir.Constant(ir.FloatType(), levels))
        inverse = builder.fdiv(ir.Constant(ir.FloatType(), levels), top)
        usable = builder.fcmp_ordered(">", top, ir.Constant(ir.FloatType(), _SMALLEST))
        inverse = e.spread_value(builder.select(usable, inverse, ir.Constant(ir.FloatType(), 0.0)))
        numbers = [builder.fptosi(e.call("rint", builder.fmul(value, inverse)), WORDS) for value in wide]
        for half, value in enumerate(numbers):
            planes = [value]
            if num_planes == 2:
                shift = e.words(_HIGH_SHIFT)
                high = builder.ashr(builder.add(value, e.words(1 << (_HIGH_SHIFT - 1))), shift)
                planes = [high, builder.sub(value, builder.shl(high, shift))]
            for plane, part in enumerate(planes):
                e.store(builder.trunc(part, BYTES), e.offset(to, GROUP * plane + 16 * half), BYTES, 1)
        total = e.reduce_words("add", builder.add(*numbers))
        share = builder.fmul(scale, builder.sitofp(total, ir.FloatType()))
        e.store(scale, e.offset(to, facts), ir.FloatType(), 4)
        e.store(share, e.offset(to, facts + 4), ir.FloatType(), 4)
        e.store(builder.mul(total, e.constant(-128, I32)), e.offset(to, facts + 8), I32, 4)
        return context.get_dummy_value()

    def build(_context: Any, group: Any, to: Any) -> Any:
        return void(uint64, uint64), emit

    return intrinsic(build)


quantize_8 = _quantizing(1)
"""``(group, to)``: 32 bfloat16 to the group of a row of one plane. What is no number, or not finite, makes the scale so."""
quantize_15 = _quantizing(2)
"""Likewise of two planes."""
