"""Writes AVX512 instructions into the functions that numba compiles: vectors, their loads and stores, and a loop.

They are reached through LLVM's intrinsics, because nothing in numba or numpy compiles to these instructions. All addresses are
integers, since a vector type is nothing that numba knows.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

ir: Any = importlib.import_module("llvmlite.ir")  # ships no types


class _BFloat(ir.types.Type):  # type: ignore[misc]  # ships no types
    """LLVM's ``bfloat``, which llvmlite does not name."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
SUMS = ir.VectorType(ir.FloatType(), 16)
WORDS = ir.VectorType(I32, 16)
PAIRS = ir.VectorType(_BFloat(), 32)
HALVES = ir.VectorType(I16, 32)
BYTES = ir.VectorType(I8, 16)
NARROW = ir.VectorType(_BFloat(), 16)
_DOT = "llvm.x86.avx512bf16.dpbf16ps.512"
_DOT_BYTES = "llvm.x86.avx512.vpdpbusd.512"
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


class Emitter:
    """Writes instructions into the function that numba compiles."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def _declared(self, name: str, result: Any, arguments: list[Any]) -> Any:
        module = self.builder.module
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)

    @staticmethod
    def constant(value: int, kind: Any = I64) -> Any:
        """A number of this integer type."""
        return ir.Constant(kind, value)

    @staticmethod
    def zeros() -> Any:
        """16 float32 zeros."""
        return ir.Constant(SUMS, [ir.Constant(ir.FloatType(), 0.0)] * 16)

    def offset(self, address: Any, by: Any) -> Any:
        """An address so many bytes further."""
        return self.builder.add(address, self.constant(by) if isinstance(by, int) else by)

    def load(self, address: Any, kind: Any, align: int) -> Any:
        """Reads a vector."""
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    def store(self, value: Any, address: Any, kind: Any, align: int) -> None:
        """Writes a vector."""
        self.builder.store(value, self.builder.inttoptr(address, kind.as_pointer())).align = align

    def pairs(self, address: Any, align: int) -> Any:
        """32 neighbouring bfloat16."""
        return self.builder.bitcast(self.load(address, WORDS, align), PAIRS)

    def spread(self, address: Any) -> Any:
        """One pair, sixteen times."""
        return self.builder.bitcast(self.spread_word(address), PAIRS)

    def spread_word(self, address: Any) -> Any:
        """32 bits, sixteen times."""
        return self.spread_value(self.load(address, I32, 2))

    def spread_value(self, value: Any) -> Any:
        """An int32 or float32, sixteen times."""
        undefined = ir.Constant(ir.VectorType(value.type, 16), ir.Undefined)
        return self.shuffle(self.builder.insert_element(undefined, value, self.constant(0, I32)), undefined, [0] * 16)

    def words(self, value: int) -> Any:
        """A number, sixteen times."""
        return ir.Constant(WORDS, [self.constant(value, I32)] * 16)

    def shuffle(self, one: Any, other: Any, places: list[int]) -> Any:
        """The elements at these places of two vectors, one behind the other."""
        mask = ir.Constant(ir.VectorType(I32, len(places)), [self.constant(place, I32) for place in places])
        return self.builder.shuffle_vector(one, other, mask)

    def dot(self, sums: Any, one: Any, other: Any) -> Any:
        """Adds the products of bfloat16 pairs to float32 sums."""
        return self.builder.call(self._declared(_DOT, SUMS, [SUMS, PAIRS, PAIRS]), [sums, one, other])

    def dot_bytes(self, sums: Any, unsigned: Any, signed: Any) -> Any:
        """Adds the products of four bytes each to int32 sums; 255 * 127 * 4 has room in them 16,000 times."""
        return self.builder.call(self._declared(_DOT_BYTES, WORDS, [WORDS] * 3), [sums, unsigned, signed])

    def prefetch(self, address: Any) -> None:
        """Into the second-level cache."""
        function = self._declared(_PREFETCH, ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        pointer = self.builder.inttoptr(address, I8.as_pointer())
        self.builder.call(function, [pointer, *(self.constant(value, I32) for value in (0, 2, 1))])

    def filled(self, value: float) -> Any:
        """A float32, 16 times."""
        return ir.Constant(SUMS, [ir.Constant(ir.FloatType(), value)] * 16)

    def call(self, name: str, *values: Any) -> Any:
        """An LLVM intrinsic on vectors of 16 float32."""
        return self.builder.call(self._declared(f"llvm.{name}.v16f32", SUMS, [SUMS] * len(values)), values)

    def call_words(self, name: str, *values: Any) -> Any:
        """An LLVM intrinsic on vectors of 16 int32."""
        return self.builder.call(self._declared(f"llvm.{name}.v16i32", WORDS, [WORDS] * len(values)), values)

    def reduce_words(self, name: str, value: Any) -> Any:
        """One int32 from 16, by one of LLVM's reductions."""
        return self.builder.call(self._declared(f"llvm.vector.reduce.{name}.v16i32", I32, [WORDS]), [value])

    def widened(self, address: Any) -> list[Any]:
        """32 neighbouring bfloat16 as two vectors of float32."""
        b = self.builder
        narrow = [self.load(self.offset(address, 32 * half), ir.VectorType(I16, 16), 2) for half in range(2)]
        return [b.bitcast(b.shl(b.zext(value, WORDS), self.words(16)), SUMS) for value in narrow]

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
        exponent = b.add(b.fptosi(whole, WORDS), ir.Constant(WORDS, [self.constant(127, I32)] * 16))
        scale = b.bitcast(b.shl(exponent, ir.Constant(WORDS, [self.constant(23, I32)] * 16)), SUMS)
        return b.fmul(power, scale)

    def silu(self, x: Any) -> Any:
        """``x * sigmoid(x)``."""
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
        index = builder.phi(I64)
        index.add_incoming(self.constant(0), before)
        values = [builder.phi(value.type) for value in held]
        new = body(index, values)
        following = builder.add(index, self.constant(1))
        index.add_incoming(following, block)
        for phi, first, then in zip(values, held, new, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(then, block)
        builder.cbranch(builder.icmp_signed("<", following, count), block, after)
        builder.position_at_end(after)
        return new
