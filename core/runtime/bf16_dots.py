"""Intrinsics for numba kernels: AVX512's dot product of bfloat16 pairs, in the shapes that matrix products and attention want.

They are reached through LLVM's intrinsics, because nothing in numba or numpy compiles to these instructions. All of them
take addresses (``array.ctypes.data`` inside a kernel), since a vector type is nothing that numba knows. A kernel that uses
one must run only where `has_bf16_dot` says so: elsewhere LLVM has no instruction for it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from numba import int64, uint64, void
from numba.extending import intrinsic

_ir: Any = importlib.import_module("llvmlite.ir")  # ships no types


@functools.cache
def has_bf16_dot() -> bool:
    """Whether this CPU has AVX512-BF16."""
    cpu: Any = torch.cpu
    return bool(cpu._is_avx512_bf16_supported())


class _BFloat(_ir.types.Type):  # type: ignore[misc]  # ships no types
    """LLVM's ``bfloat``, which llvmlite does not name."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_I8, _I16, _I32, _I64 = _ir.IntType(8), _ir.IntType(16), _ir.IntType(32), _ir.IntType(64)
_SUMS = _ir.VectorType(_ir.FloatType(), 16)
_WORDS = _ir.VectorType(_I32, 16)
_PAIRS = _ir.VectorType(_BFloat(), 32)
_HALVES = _ir.VectorType(_I16, 32)
_NARROW = _ir.VectorType(_BFloat(), 16)
_DOT = "llvm.x86.avx512bf16.dpbf16ps.512"
_PREFETCH = "llvm.prefetch.p0"
_EXP2 = (
    1.535336188319500e-4,
    1.339887440266574e-3,
    9.618437357674640e-3,
    5.550332471162809e-2,
    2.402264791363012e-1,
    6.931472028550421e-1,
    1.0,
)
_ERFC = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0)


class _Emitter:
    """Writes instructions into the function that numba compiles."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self._dot = self._declared(_DOT, _SUMS, [_SUMS, _PAIRS, _PAIRS])

    def _declared(self, name: str, result: Any, arguments: list[Any]) -> Any:
        module = self.builder.module
        return module.globals.get(name) or _ir.Function(module, _ir.FunctionType(result, arguments), name)

    @staticmethod
    def constant(value: int, kind: Any = _I64) -> Any:
        return _ir.Constant(kind, value)

    @staticmethod
    def zeros() -> Any:
        return _ir.Constant(_SUMS, [_ir.Constant(_ir.FloatType(), 0.0)] * 16)

    def offset(self, address: Any, by: Any) -> Any:
        return self.builder.add(address, self.constant(by) if isinstance(by, int) else by)

    def load(self, address: Any, kind: Any, align: int) -> Any:
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    def store(self, value: Any, address: Any, kind: Any, align: int) -> None:
        self.builder.store(value, self.builder.inttoptr(address, kind.as_pointer())).align = align

    def pairs(self, address: Any, align: int) -> Any:
        """32 neighbouring bfloat16."""
        return self.builder.bitcast(self.load(address, _WORDS, align), _PAIRS)

    def spread(self, address: Any) -> Any:
        """One pair, sixteen times."""
        builder = self.builder
        undefined = _ir.Constant(_WORDS, _ir.Undefined)
        word = builder.insert_element(undefined, self.load(address, _I32, 2), self.constant(0, _I32))
        return builder.bitcast(self.shuffle(word, undefined, [0] * 16), _PAIRS)

    def shuffle(self, one: Any, other: Any, places: list[int]) -> Any:
        mask = _ir.Constant(_ir.VectorType(_I32, len(places)), [self.constant(place, _I32) for place in places])
        return self.builder.shuffle_vector(one, other, mask)

    def dot(self, sums: Any, one: Any, other: Any) -> Any:
        return self.builder.call(self._dot, [sums, one, other])

    def prefetch(self, address: Any) -> None:
        """Into the second-level cache."""
        function = self._declared(_PREFETCH, _ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        pointer = self.builder.inttoptr(address, _I8.as_pointer())
        self.builder.call(function, [pointer, *(self.constant(value, _I32) for value in (0, 2, 1))])

    def filled(self, value: float) -> Any:
        return _ir.Constant(_SUMS, [_ir.Constant(_ir.FloatType(), value)] * 16)

    def call(self, name: str, *values: Any) -> Any:
        """An LLVM intrinsic on vectors of 16 float32."""
        return self.builder.call(self._declared(f"llvm.{name}.v16f32", _SUMS, [_SUMS] * len(values)), values)

    def polynomial(self, x: Any, coefficients: Sequence[float]) -> Any:
        """Of the highest power first."""
        value = self.filled(coefficients[0])
        for coefficient in coefficients[1:]:
            value = self.call("fma", value, x, self.filled(coefficient))
        return value

    def exp(self, x: Any) -> Any:
        """Relative error below 2e-7, for what neither overflows nor is denormal; beyond, the largest and smallest of these.

        Source: the polynomial of Cephes' exp2f.
        """
        b = self.builder
        x = b.fmul(x, self.filled(1.4426950408889634))
        x = self.call("minnum", self.call("maxnum", x, self.filled(-126.0)), self.filled(126.0))
        whole = self.call("rint", x)
        power = self.polynomial(b.fsub(x, whole), _EXP2)
        exponent = b.add(b.fptosi(whole, _WORDS), _ir.Constant(_WORDS, [self.constant(127, _I32)] * 16))
        scale = b.bitcast(b.shl(exponent, _ir.Constant(_WORDS, [self.constant(23, _I32)] * 16)), _SUMS)
        return b.fmul(power, scale)

    def silu(self, x: Any) -> Any:
        b = self.builder
        return b.fdiv(x, b.fadd(self.filled(1.0), self.exp(b.fsub(self.zeros(), x))))

    def gelu(self, x: Any) -> Any:
        """Source: Abramowitz and Stegun, 7.1.26, for the error function; absolute error below 1.5e-7."""
        b = self.builder
        z = b.fmul(self.call("fabs", x), self.filled(0.7071067811865476))
        t = b.fdiv(self.filled(1.0), self.call("fma", z, self.filled(0.3275911), self.filled(1.0)))
        tail = b.fmul(self.polynomial(t, _ERFC), self.exp(b.fsub(self.zeros(), b.fmul(z, z))))
        below = b.fmul(self.filled(0.5), tail)  # of the normal distribution, beyond |x|
        below = b.select(b.fcmp_ordered("<", x, self.zeros()), below, b.fsub(self.filled(1.0), below))
        return b.fmul(x, below)

    def loop(self, count: Any, held: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
        """Runs ``body(index, held)`` for each index below ``count`` (at least 1); it returns what is held next."""
        builder = self.builder
        before = builder.block
        block, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(block)
        builder.position_at_end(block)
        index = builder.phi(_I64)
        index.add_incoming(self.constant(0), before)
        values = [builder.phi(_SUMS) for _ in held]
        new = body(index, values)
        following = builder.add(index, self.constant(1))
        index.add_incoming(following, block)
        for phi, first, then in zip(values, held, new, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(then, block)
        builder.cbranch(builder.icmp_signed("<", following, count), block, after)
        builder.position_at_end(after)
        return new


def tile(num_rows: int) -> Any:
    """An intrinsic ``(rows, row_bytes, panel, num_pairs, sums, next_0, next_1)``: some rows times a panel of 32 columns.

    rows: Address of the first; their pairs are neighbours. panel: [num_pairs, 32] pairs, at the start of a cache line.
    sums: [num_rows, 32], float32, written. next_0, next_1: How far from the pair's weights the addresses lie that are
    prefetched beside them.
    """

    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        rows, row_bytes, panel, num_pairs, sums, next_0, next_1 = arguments
        e = _Emitter(builder)
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
            e.store(value, e.offset(sums, 64 * i), _SUMS, 4)
        return context.get_dummy_value()

    def build(
        _context: Any, rows: Any, row_bytes: Any, panel: Any, num_pairs: Any, sums: Any, next_0: Any, next_1: Any
    ) -> Any:
        return void(uint64, int64, uint64, int64, uint64, int64, int64), emit

    return intrinsic(build)


def _rounding(count: int) -> Any:
    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        e = _Emitter(builder)
        for i in range(count // 16):
            values = e.load(e.offset(arguments[0], 64 * i), _SUMS, 4)
            e.store(builder.fptrunc(values, _NARROW), e.offset(arguments[1], 32 * i), _NARROW, 2)
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
        e = _Emitter(builder)
        e.store(getattr(e, name)(e.load(arguments[0], _SUMS, 4)), arguments[0], _SUMS, 4)
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
        e = _Emitter(builder)
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
        e.store(parts[0], sums, _SUMS, 4)
        return context.get_dummy_value()

    def build(_context: Any, vector: Any, rows: Any, num_blocks: Any, sums: Any) -> Any:
        return void(uint64, uint64, int64, uint64), emit

    return intrinsic(build)


dot_16_rows = _dot_16_rows()
"""``(vector, rows, num_blocks, sums)``: the products of a vector of 32 * num_blocks with 16 neighbouring rows, float32."""


def _add_16_rows() -> Any:
    def emit(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        weights, rows, num_blocks, sums = arguments
        e = _Emitter(builder)
        row_bytes = builder.mul(num_blocks, e.constant(64))
        starts = [e.offset(rows, builder.mul(row_bytes, e.constant(r))) for r in range(16)]
        shares = [e.spread(e.offset(weights, 4 * i)) for i in range(8)]
        interleaved = [[16 * half + i // 2 + 32 * (i % 2) for i in range(32)] for half in range(2)]

        def body(index: Any, _held: list[Any]) -> list[Any]:
            by, to = builder.mul(index, e.constant(64)), e.offset(sums, builder.mul(index, e.constant(128)))
            totals = [e.load(e.offset(to, 64 * half), _SUMS, 4) for half in range(2)]
            for i, share in enumerate(shares):
                one, other = (e.pairs(e.offset(starts[2 * i + j], by), 2) for j in range(2))
                for half in range(2):
                    totals[half] = e.dot(totals[half], share, e.shuffle(one, other, interleaved[half]))
            for half in range(2):
                e.store(totals[half], e.offset(to, 64 * half), _SUMS, 4)
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
        e = _Emitter(builder)

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
