"""Intrinsics for numba kernels over weights of 8 or 4 bits: AVX512-VNNI's dot product of bytes, and widening to bfloat16.

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

from sixfold.core.runtime.vector_emitter import I16, NARROW, PAIRS, SUMS, WORDS, Emitter, ir

GROUP = 32
"""Input features that share a scale."""
_QUADS = GROUP // 4
ROW_GROUP_BYTES = GROUP + 16
"""Of a row of quantized inputs: a group's bytes; its scale, and that times the sum of the bytes (float32); -128 times the sum."""


@functools.cache
def has_byte_dot() -> bool:
    """Whether this CPU has AVX512-VNNI."""
    binding: Any = importlib.import_module("llvmlite.binding")
    return bool(binding.get_host_cpu_features().get("avx512vnni"))


def block_bytes(num_bits: int) -> int:
    """Size of one group of a panel's 32 columns."""
    return 64 + 32 * GROUP if num_bits == 8 else 128 + 16 * GROUP


class _Block:
    """The parts of one group, loaded where they are wanted."""

    def __init__(self, emitter: Emitter, address: Any, num_bits: int) -> None:
        self._e, self._address, self._bits = emitter, address, num_bits

    def _widened(self, start: int) -> list[Any]:
        """32 bfloat16 as two vectors of float32."""
        e, b = self._e, self._e.builder
        narrow = [e.load(e.offset(self._address, start + 32 * half), ir.VectorType(I16, 16), 32) for half in range(2)]
        return [b.bitcast(b.shl(b.zext(value, WORDS), e.words(16)), SUMS) for value in narrow]

    def scales(self) -> list[Any]:
        return self._widened(0)

    def offsets(self) -> list[Any]:
        """What is added to number times scale."""
        return self._widened(64)

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


def byte_tile(num_rows: int, num_bits: int) -> Any:
    """An intrinsic ``(rows, row_bytes, panel, num_groups, sums, ahead)``: some quantized rows times a panel.

    rows: Address of the first; each is num_groups times `ROW_GROUP_BYTES`. panel: At the start of a cache line.
    sums: [num_rows, 32], float32, written. ahead: How far from a block those lines lie that are prefetched beside it.
    """
    size = block_bytes(num_bits)

    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        rows, row_bytes, panel, num_groups, sums, ahead = arguments
        e = Emitter(builder)
        starts = [e.offset(rows, builder.mul(row_bytes, e.constant(r))) for r in range(num_rows)]

        def body(group: Any, held: list[Any]) -> list[Any]:
            here = e.offset(panel, builder.mul(group, e.constant(size)))
            for line in range(size // 64):
                e.prefetch(e.offset(e.offset(here, ahead), 64 * line))
            in_row = builder.mul(group, e.constant(ROW_GROUP_BYTES))
            inputs = [e.offset(start, in_row) for start in starts]
            block = _Block(e, here, num_bits)
            # Numbers of 8 bits are 128 too large, so a sum begins with what that adds.
            first = [e.spread_word(e.offset(at, GROUP + 8)) if num_bits == 8 else e.words(0) for at in inputs]
            totals = [value for value in first for _half in range(2)]
            for quad, weights in enumerate(block.quads()):
                spread = [e.spread_word(e.offset(at, 4 * quad)) for at in inputs]
                totals = [e.dot_bytes(total, weights[i % 2], spread[i // 2]) for i, total in enumerate(totals)]
            scales, offsets = block.scales(), block.offsets() if num_bits == 4 else []
            new: list[Any] = []
            for i, value in enumerate(held):
                at, half = inputs[i // 2], i % 2
                factor = builder.fmul(scales[half], builder.bitcast(e.spread_word(e.offset(at, GROUP)), SUMS))
                value = e.call("fma", builder.sitofp(totals[i], SUMS), factor, value)
                if num_bits == 4:
                    share = builder.bitcast(e.spread_word(e.offset(at, GROUP + 4)), SUMS)
                    value = e.call("fma", offsets[half], share, value)
                new.append(value)
            return new

        for i, value in enumerate(e.loop(num_groups, [e.zeros()] * (2 * num_rows), body)):
            e.store(value, e.offset(sums, 64 * i), SUMS, 4)
        return context.get_dummy_value()

    def build(_context: Any, rows: Any, row_bytes: Any, panel: Any, num_groups: Any, sums: Any, ahead: Any) -> Any:
        return void(uint64, int64, uint64, int64, uint64, int64), emit

    return intrinsic(build)


def _widening(num_bits: int) -> Any:
    size = block_bytes(num_bits)

    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        panel, num_groups, pairs, ahead = arguments
        e = Emitter(builder)
        interleaved = [i // 2 + 16 * (i % 2) for i in range(32)]

        def body(group: Any, _held: list[Any]) -> list[Any]:
            here = e.offset(panel, builder.mul(group, e.constant(size)))
            for line in range(size // 64):
                e.prefetch(e.offset(e.offset(here, ahead), 64 * line))
            to = e.offset(pairs, builder.mul(group, e.constant(64 * GROUP)))
            block = _Block(e, here, num_bits)
            scales = block.scales()
            offsets = block.offsets() if num_bits == 4 else [builder.fmul(s, e.filled(-128.0)) for s in scales]
            for quad, halves in enumerate(block.quads()):
                for half, words in enumerate(halves):
                    narrow: list[Any] = []
                    for place in range(4):
                        number = builder.and_(builder.lshr(words, e.words(8 * place)), e.words(0xFF))
                        wide = e.call("fma", builder.sitofp(number, SUMS), scales[half], offsets[half])
                        narrow.append(builder.fptrunc(wide, NARROW))
                    for pair in range(2):
                        both = e.shuffle(narrow[2 * pair], narrow[2 * pair + 1], interleaved)
                        e.store(both, e.offset(to, 256 * quad + 128 * pair + 64 * half), PAIRS, 64)
            return []

        e.loop(num_groups, [], body)
        return context.get_dummy_value()

    def build(_context: Any, panel: Any, num_groups: Any, pairs: Any, ahead: Any) -> Any:
        return void(uint64, int64, uint64, int64), emit

    return intrinsic(build)


widen_8 = _widening(8)
"""``(panel, num_groups, pairs, ahead)``: a panel of 8 bits as bfloat16 pairs, as `bf16_dots.tile` wants them."""
widen_4 = _widening(4)
"""Likewise of 4 bits."""
