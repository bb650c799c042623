"""Intrinsics for numba kernels: AVX512's dot product of bfloat16 pairs, in the shapes that matrix products and attention want.

They are reached through LLVM's intrinsics, because nothing in numba or numpy compiles to these instructions. All of them
take addresses (``array.ctypes.data`` inside a kernel), since a vector type is nothing that numba knows. A kernel that uses
one must run only where `has_bf16_dot` says so: elsewhere LLVM has no instruction for it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from numba import int64, uint64, void
from numba.extending import intrinsic

from sixfold.core.runtime.vector_emitter import NARROW, SUMS, Emitter


@functools.cache
def has_bf16_dot() -> bool:
    """Whether this CPU has AVX512-BF16."""
    cpu: Any = torch.cpu
    return bool(cpu._is_avx512_bf16_supported())


def tile(num_rows: int) -> Any:
    """An intrinsic ``(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)``: some rows times a panel of 32 columns.

    rows: Address of the first; their pairs are neighbours. panel: [num_pairs, 32] pairs, at the start of a cache line.
    sums: [num_rows, 32], float32, written. next_0, next_1: How far from the pair's weights the addresses lie that are
    prefetched beside them.
    """

    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        rows, row_bytes, panel, num_pairs, sums, next_0, next_1 = arguments
        e = Emitter(builder)
        starts = [e.offset(rows, builder.mul(row_bytes, e.constant(r))) for r in range(num_rows)]

        def body(pair: Any, held: list[Any]) -> list[Any]:
            here = e.offset(panel, builder.mul(pair, e.constant(128)))
            weights = [e.pairs(e.offset(here, 64 * half), 64) for half in range(2)]
            e.prefetch(e.offset(here, next_0))
            e.prefetch(e.offset(here, next_1))
            in_row = builder.mul(pair, e.constant(4))
            both = [e.spread(e.offset(start, in_row)) for start in starts]
            return [e.dot(value, both[i // 2], weights[i % 2]) for i, value in enumerate(held)]

        for i, value in enumerate(e.loop(num_pairs, [e.zeros()] * (2 * num_rows), body)):
            e.store(value, e.offset(sums, 64 * i), SUMS, 4)
        return context.get_dummy_value()

    def build(
        _context: Any, rows: Any, row_bytes: Any, panel: Any, num_pairs: Any, sums: Any, next_0: Any, next_1: Any
    ) -> Any:
        return void(uint64, int64, uint64, int64, uint64, int64, int64), emit

    return intrinsic(build)


def _rounding(count: int) -> Any:
    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        e = Emitter(builder)
        for i in range(count // 16):
            values = e.load(e.offset(arguments[0], 64 * i), SUMS, 4)
            e.store(builder.fptrunc(values, NARROW), e.offset(arguments[1], 32 * i), NARROW, 2)
        return context.get_dummy_value()

    def build(_context: Any, wide: Any, narrow: Any) -> Any:
        return void(uint64, uint64), emit

    return intrinsic(build)


round_16 = _rounding(16)
"""``(wide, narrow)``: 16 float32 to bfloat16, to nearest, ties to even; what is too small to be normal may become zero."""
round_32 = _rounding(32)
"""Likewise for 32."""


def _activating(name: str) -> Any:
    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        e = Emitter(builder)
        e.store(getattr(e, name)(e.load(arguments[0], SUMS, 4)), arguments[0], SUMS, 4)
        return context.get_dummy_value()

    def build(_context: Any, values: Any) -> Any:
        return void(uint64), emit

    return intrinsic(build)


silu_16 = _activating("silu")
"""``(values)``: replaces 16 float32."""
gelu_16 = _activating("gelu")
"""``(values)``: replaces 16 float32; the exact gelu."""


def _four_bits_reversed(value: int) -> int:
    return int(f"{value:04b}"[::-1], 2)


def _dot_16_rows() -> Any:
    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        vector, rows, num_blocks, sums = arguments
        e = Emitter(builder)
        row_bytes = builder.mul(num_blocks, e.constant(64))
        starts = [e.offset(rows, builder.mul(row_bytes, e.constant(r))) for r in range(16)]

        def body(index: Any, held: list[Any]) -> list[Any]:
            by = builder.mul(index, e.constant(64))
            own = e.pairs(e.offset(vector, by), 2)
            loaded = [e.pairs(e.offset(start, by), 2) for start in starts]
            return [e.dot(value, own, row) for value, row in zip(held, loaded, strict=True)]

        # Sixteen vectors of partial sums become one. Each round adds neighbouring lanes of two of them, the sums of the
        # first going to the lower half, those of the second to the upper; so lane r ends with row r.
        parts = e.loop(num_blocks, [e.zeros()] * 16, body)
        parts = [parts[_four_bits_reversed(i)] for i in range(16)]
        even, odd = list(range(0, 32, 2)), list(range(1, 32, 2))
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [
                builder.fadd(e.shuffle(one, other, even), e.shuffle(one, other, odd))
                for one, other in zip(parts[:half], parts[half:], strict=True)
            ]
        e.store(parts[0], sums, SUMS, 4)
        return context.get_dummy_value()

    def build(_context: Any, vector: Any, rows: Any, num_blocks: Any, sums: Any) -> Any:
        return void(uint64, uint64, int64, uint64), emit

    return intrinsic(build)


dot_16_rows = _dot_16_rows()
"""``(vector, rows, num_blocks, sums)``: the products of a vector of 32 * num_blocks with 16 neighbouring rows, float32."""


def _add_16_rows() -> Any:
    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        weights, rows, num_blocks, sums = arguments
        e = Emitter(builder)
        row_bytes = builder.mul(num_blocks, e.constant(64))
        starts = [e.offset(rows, builder.mul(row_bytes, e.constant(r))) for r in range(16)]
        shares = [e.spread(e.offset(weights, 4 * i)) for i in range(8)]
        interleaved = [[16 * half + i // 2 + 32 * (i % 2) for i in range(32)] for half in range(2)]

        def body(index: Any, _held: list[Any]) -> list[Any]:
            by, to = builder.mul(index, e.constant(64)), e.offset(sums, builder.mul(index, e.constant(128)))
            totals = [e.load(e.offset(to, 64 * half), SUMS, 4) for half in range(2)]
            for i, share in enumerate(shares):
                one, other = (e.pairs(e.offset(starts[2 * i + j], by), 2) for j in range(2))
                for half in range(2):
                    totals[half] = e.dot(totals[half], share, e.shuffle(one, other, interleaved[half]))
            for half in range(2):
                e.store(totals[half], e.offset(to, 64 * half), SUMS, 4)
            return []

        e.loop(num_blocks, [], body)
        return context.get_dummy_value()

    def build(_context: Any, weights: Any, rows: Any, num_blocks: Any, sums: Any) -> Any:
        return void(uint64, uint64, int64, uint64), emit

    return intrinsic(build)


add_16_rows = _add_16_rows()
"""``(weights, rows, num_blocks, sums)``: adds 16 rows of 32 * num_blocks, each times its bfloat16 weight, to float32 sums."""


def _prefetching() -> Any:
    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, num_lines = arguments
        e = Emitter(builder)

        def body(index: Any, _held: list[Any]) -> list[Any]:
            e.prefetch(e.offset(address, builder.mul(index, e.constant(64))))
            return []

        e.loop(num_lines, [], body)
        return context.get_dummy_value()

    def build(_context: Any, address: Any, num_lines: Any) -> Any:
        return void(uint64, int64), emit

    return intrinsic(build)


prefetch_lines = _prefetching()
"""``(address, num_lines)``: asks for cache lines that will be read soon."""
