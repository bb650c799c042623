"""How long one step of a language model takes, as a line in what it does; fitted to measurements of a real engine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step: ``base_s + per_prefill_s * prefill tokens + per_row_s * decode rows + per_kv_s * cached tokens read``.

    Attributes:
        base_s: Of any step: reading the weights, launching kernels.
        per_prefill_s: A prompt token.
        per_row_s: A sequence that decodes.
        per_kv_s: A cached token that a decoding sequence attends to.
    """

    base_s: float
    per_prefill_s: float
    per_row_s: float
    per_kv_s: float

    def seconds(self, *, prefill_tokens: int, decode_rows: int, kv_tokens: int) -> float:
        """The time of one step."""
        return (
            self.base_s + self.per_prefill_s * prefill_tokens + self.per_row_s * decode_rows + self.per_kv_s * kv_tokens
        )

    def decode_seconds(self, num_steps: int, *, decode_rows: int, kv_tokens: int) -> float:
        """The time of several steps that only decode: each row's context grows by one token a step."""
        first_s = self.seconds(prefill_tokens=0, decode_rows=decode_rows, kv_tokens=kv_tokens)
        return num_steps * first_s + self.per_kv_s * decode_rows * num_steps * (num_steps - 1) / 2

    def decode_steps(self, seconds: float, *, decode_rows: int, kv_tokens: int) -> int:
        """The fewest steps that only decode and take at least ``seconds``."""
        first_s = self.seconds(prefill_tokens=0, decode_rows=decode_rows, kv_tokens=kv_tokens)
        growth_s = self.per_kv_s * decode_rows / 2
        if growth_s * seconds < 1e-9 * first_s * first_s:
            steps = seconds / first_s
        else:
            linear_s = first_s - growth_s
            steps = (-linear_s + math.sqrt(linear_s * linear_s + 4 * growth_s * seconds)) / (2 * growth_s)
        return max(1, math.ceil(steps - 1e-9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A time together with the work that took it; of one step, or of several added up.

    Attributes:
        steps: How many.
        prefill_tokens: Prompt tokens computed in them.
        decode_rows: Decoding sequences, added up over the steps.
        kv_tokens: Cached tokens read, added up over the steps.
        seconds: The time of all.
    """

    steps: float = 1.0
    prefill_tokens: float
    decode_rows: float
    kv_tokens: float
    seconds: float


def fit(measurements: Sequence[Measured]) -> StepTime:
    """The coefficients with the least squared relative error; none is negative.

    Relative, so that long prompts do not drown what a decode step takes. With four coefficients the best non-negative
    solution is found by trying each set of them, which needs no further library.

    Raises:
        ValueError: There are fewer than four measurements, or one that took no time.
    """
    if len(measurements) < 4:
        raise ValueError(
            f"{len(measurements)} measurements cannot tell four coefficients apart. Measure at least four."
        )
    if any(point.seconds <= 0.0 for point in measurements):
        raise ValueError("a measurement took no time. Leave out what was not measured.")
    work = np.array([(point.steps, point.prefill_tokens, point.decode_rows, point.kv_tokens) for point in measurements])
    scaled = work / np.array([[point.seconds] for point in measurements])
    ones = np.ones(len(measurements))
    best, best_error = np.zeros(4), math.inf
    for size in range(1, 5):
        for columns in itertools.combinations(range(4), size):
            found, *_ = np.linalg.lstsq(scaled[:, columns], ones, rcond=None)
            if (found < 0.0).any():
                continue
            error = float(np.sum((scaled[:, columns] @ found - ones) ** 2))
            # A set with one more column must be better, not just as good: of equal ones the smaller is believed.
            if error < best_error * (1 - 1e-9) - 1e-15:
                best, best_error = np.zeros(4), error
                best[list(columns)] = found
    base_s, per_prefill_s, per_row_s, per_kv_s = (float(value) for value in best)
    return StepTime(base_s=base_s, per_prefill_s=per_prefill_s, per_row_s=per_row_s, per_kv_s=per_kv_s)
