"""Compiles CPU kernels with numba, and holds the pieces that bfloat16 kernels are made of.

A kernel is a plain function over numpy arrays; bfloat16 tensors are seen as their 16 bits. It is compiled twice: for one
thread, and with its outermost ``prange`` over threads. Which one runs is the caller's choice by the size of the work,
because waking a thread costs about 10 us. Compiled code is kept on disk beside the module, or in numba's own cache.

The pieces follow one pattern: short loops over a row in float32, each of which LLVM turns into vector instructions.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

_numba: Any = numba  # ships no types
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

F32 = np.float32
U16 = np.uint16
U32 = np.uint32
I32 = np.int32

LOG2_E = F32(1.4426950408889634)

_LOCK_TIMEOUT_S = 30.0  # far above the milliseconds of a file

_FLAGS: dict[str, Any] = {"fastmath": True, "error_model": "numpy", "nogil": True}


def piece(function: FunctionT) -> FunctionT:
    """Decorates a piece of kernels. LLVM inlines it; numba itself must not, or a loop loses what is known of its arrays."""
    compiled: FunctionT = _numba.njit(**_FLAGS)(function)
    return compiled


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function compiled for one thread and for many.

    Attributes:
        serial: On the calling thread.
        parallel: Over all threads that `set_num_threads` allows; the same as ``serial`` where there is no OpenMP.
    """

    serial: Callable[..., None]
    parallel: Callable[..., None]


def kernel(function: Callable[..., None]) -> Kernel:
    """Compiles a function, when it is first called, for the types it is called with. Decorates."""
    serial = _compile(function, parallel=False)
    return Kernel(serial, _compile(function, parallel=True) if _HAS_OPENMP else serial)


def _compile(function: Callable[..., None], *, parallel: bool) -> Callable[..., None]:
    # numba finds compiled code on disk by the function's name alone: under one name the second would get the first's.
    twin = types.FunctionType(function.__code__, function.__globals__, function.__name__)
    twin.__qualname__ = f"{function.__qualname__}_{'parallel' if parallel else 'serial'}"
    twin.__module__ = function.__module__
    try:
        compiled = _numba.njit(cache=True, parallel=parallel, **_FLAGS)(twin)
    except RuntimeError:  # no folder that could be written to: compiled anew in every process
        compiled = _numba.njit(parallel=parallel, **_FLAGS)(twin)
    else:
        compiled._cache = _OneAtATime(compiled._cache)
    return cast(Callable[..., None], compiled)


class _OneAtATime:
    """numba's cache of one function's compiled code, for one process at a time.

    numba reads the index, picks a free number for the code's file, writes the index, then the file. Of two processes that do so
    at once each may pick the other's number, and one that reads in between finds what an older source has left there: code
    of other types, or of another version, without a word.

    Args:
        cache: What numba's dispatcher asks.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._lock = FileLock(Path(cache.cache_path) / "sixfold-kernels.lock", is_singleton=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, *args: Any) -> Any:
        """The compiled code for a signature; None if there is none."""
        with self._locked():
            return self._cache.load_overload(*args)

    def save_overload(self, *args: Any) -> None:
        """Keeps compiled code."""
        with self._locked():
            self._cache.save_overload(*args)

    def _locked(self) -> AbstractContextManager[Any]:
        try:
            Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            return self._lock.acquire(timeout=_LOCK_TIMEOUT_S)
        except (OSError, Timeout):  # as numba does with a folder that went away: without it code is only compiled anew
            return nullcontext()


def _find_openmp() -> bool:
    """Whether numba's OpenMP layer can load; its other layers end the process when two threads use them at once."""
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        return False
    _numba.config.THREADING_LAYER = "omp"
    return True


_HAS_OPENMP = _find_openmp()


def set_num_threads(count: int) -> None:
    """Bounds the threads of parallel kernels that the calling thread runs."""
    _numba.set_num_threads(min(count, int(_numba.config.NUMBA_NUM_THREADS)))


def get_num_threads() -> int:
    """How many threads parallel kernels use that the calling thread runs."""
    count: int = _numba.get_num_threads()
    return count


def has_openmp() -> bool:
    """Whether parallel kernels run on threads."""
    return _HAS_OPENMP


def bits(tensor: Tensor) -> Any:
    """A bfloat16 tensor on the CPU as a numpy array of its bits; shares memory."""
    return tensor.view(torch.uint16).numpy()


@piece
def widen(wide: Any, narrow: Any, count: int) -> None:
    """bfloat16 bits to the bits of float32."""
    for i in range(count):
        wide[i] = U32(narrow[i]) << U32(16)


@piece
def round_to_bfloat16(narrow: Any, wide: Any, count: int) -> None:
    """The bits of float32 to bfloat16 bits, to nearest, ties to even.

    A NaN stays one if it came from a widened bfloat16 or from arithmetic: only a NaN with all bits set would overflow.
    """
    for i in range(count):
        value = wide[i]
        narrow[i] = U16((value + U32(0x7FFF) + ((value >> U32(16)) & U32(1))) >> U32(16))


@piece
def exp2_sum(values: Any, powers: Any, powers_bits: Any, top: Any, count: int) -> Any:
    """Replaces values by ``2 ** (value - top)`` and returns their sum; relative error below 1e-4, far under bfloat16's.

    Two loops with memory of their own between them: one that writes and reads one memory under two types stays scalar.

    Args:
        values: float32, none above ``top``; what is 126 or more below counts as 126 below.
        powers: float32, as long; overwritten.
        powers_bits: The same memory as int32.
        top: Subtracted first.
        count: How many.
    """
    for i in range(count):
        x = max(values[i] - top, F32(-126.0))
        whole = np.floor(x)
        part = x - whole
        power = F32(0.0096181) + part * F32(0.0013334)
        power = F32(0.0555041) + part * power
        power = F32(0.2402265) + part * power
        power = F32(0.6931472) + part * power
        values[i] = F32(1) + part * power
        powers_bits[i] = I32((I32(whole) + I32(127)) << I32(23))
    total = F32(0)
    for i in range(count):
        value = values[i] * powers[i]
        values[i] = value
        total += value
    return total
