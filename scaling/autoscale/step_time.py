"""How long one step of a language model takes, as a line in what it does; fitted to measurements of a real engine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step, a sum of what it does: five coefficients, none of which says anything about the engine's policy.

    ``base_s + per_prefill_s * prefill tokens + per_prefill_kv_s * tokens that these attend to + per_row_s * decoding
    sequences + per_kv_s * cached tokens that these attend to``

    What the two kinds of rows attend to is priced apart: decoding reads each cached token for one query and is bound by
    memory, a prompt reads it for a whole chunk and is bound by arithmetic.

    Attributes:
        base_s: Of any step: reading the weights, launching kernels, the host's time before the next one.
        per_prefill_s: A prompt token.
        per_row_s: A sequence that decodes.
        per_kv_s: A cached token that a decoding sequence attends to.
        per_prefill_kv_s: A token that a prompt token attends to, itself included; see `attended_tokens`.
    """

    base_s: float
    per_prefill_s: float
    per_row_s: float
    per_kv_s: float
    per_prefill_kv_s: float = 0.0

    def seconds(
        self, *, prefill_tokens: float, decode_rows: float, kv_tokens: float, prefill_kv_tokens: float = 0.0
    ) -> float:
        """The time of one step."""
        return (
            self.base_s
            + self.per_prefill_s * prefill_tokens
            + self.per_prefill_kv_s * prefill_kv_tokens
            + self.per_row_s * decode_rows
            + self.per_kv_s * kv_tokens
        )

    def predict(self, work: Measured) -> float:
        """The time of all steps of a measurement."""
        return self.base_s * (work.steps - 1.0) + self.seconds(
            prefill_tokens=work.prefill_tokens,
            decode_rows=work.decode_rows,
            kv_tokens=work.kv_tokens,
            prefill_kv_tokens=work.prefill_kv_tokens,
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


def attended_tokens(num_tokens: int, num_before: int) -> float:
    """How many tokens a chunk of a prompt attends to, summed over its tokens: all before the chunk, and the chunk's own
    up to each.

    Args:
        num_tokens: Of the chunk.
        num_before: Of the same prompt that were computed before, or found in a cache.
    """
    return num_tokens * num_before + num_tokens * (num_tokens + 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A time together with the work that took it; of one step, or of several added up.

    Attributes:
        steps: How many.
        prefill_tokens: Prompt tokens computed in them.
        decode_rows: Decoding sequences, added up over the steps.
        kv_tokens: Cached tokens that those read, added up over the steps.
        prefill_kv_tokens: See `attended_tokens`; added up over chunks and steps.
        seconds: The time of all.
    """

    steps: float = 1.0
    prefill_tokens: float
    decode_rows: float
    kv_tokens: float
    prefill_kv_tokens: float = 0.0
    seconds: float


def fit(measurements: Sequence[Measured]) -> StepTime:
    """The coefficients with the least squared relative error; none is negative.

    Relative, so that long prompts do not drown what a decode step takes. With five coefficients the best non-negative
    solution is found by trying each set of them, which needs no further library. A coefficient of work that no
    measurement did is 0.

    Raises:
        ValueError: There are fewer measurements than coefficients of the work that was measured, or one took no time.
    """
    work = np.array(
        [
            (point.steps, point.prefill_tokens, point.decode_rows, point.kv_tokens, point.prefill_kv_tokens)
            for point in measurements
        ]
    ).reshape(-1, 5)
    done = [column for column in range(5) if work[:, column].any()]
    if not measurements:
        raise ValueError("nothing was measured. Measure steps of prompts and of decoding.")
    if len(measurements) < len(done):
        raise ValueError(
            f"{len(measurements)} measurements cannot tell {len(done)} coefficients apart. Measure at least {len(done)}."
        )
    if any(point.seconds <= 0.0 for point in measurements):
        raise ValueError("a measurement took no time. Leave out what was not measured.")
    scaled = work / np.array([[point.seconds] for point in measurements])
    ones = np.ones(len(measurements))
    best, best_error = np.zeros(5), math.inf
    for size in range(1, len(done) + 1):
        for columns in itertools.combinations(done, size):
            found, *_ = np.linalg.lstsq(scaled[:, columns], ones, rcond=None)
            if (found < 0.0).any():
                continue
            error = float(np.sum((scaled[:, columns] @ found - ones) ** 2))
            # A set with one more column must be better, not just as good: of equal ones the smaller is believed.
            if error < best_error * (1 - 1e-9) - 1e-15:
                best, best_error = np.zeros(5), error
                best[list(columns)] = found
    base_s, per_prefill_s, per_row_s, per_kv_s, per_prefill_kv_s = (float(value) for value in best)
    return StepTime(
        base_s=base_s,
        per_prefill_s=per_prefill_s,
        per_row_s=per_row_s,
        per_kv_s=per_kv_s,
        per_prefill_kv_s=per_prefill_kv_s,
    )
