"""What one more row costs a step, measured where it runs: the price of a guess."""

from __future__ import annotations

from sixfold.core.batching.budget import StepTime

# Until enough was measured, a further row counts as this much of a step, whatever shares it. SmolLM2-135M in bfloat16 on one
# thread of a Zen 4: 2% up to 8 rows, then 9%; on long contexts 7% from the start.
_UNTIL_MEASURED = 0.1
_ENOUGH_STEPS = 128
# As of `StepTime.spread`: less and the time of a row cannot be told from that of a step. Steps of one row, of which each
# fiftieth has two, are this far apart.
_LEAST_SPREAD = 0.015
_LEAST = 0.01
# A step that takes so many times the mean was not slow by its rows: kernels were compiled, or the machine did something else.
_SLOW = 4.0
_FEW_STEPS = 8
_BLEND = 0.02


class RowCost:
    """Learns from steps that only decode. Owned by the device thread.

    Steps differ in their rows by themselves: guesses are fewer or more, sequences come and go. What is old is forgotten within
    some hundred steps, so that a cost that was found too high once, and so lets nobody guess, does not keep itself.
    """

    def __init__(self) -> None:
        self._time = StepTime()
        self._num_steps = 0
        self._mean_s = 0.0

    def observe(self, num_rows: int, seconds: float) -> None:
        """A step was done.

        Args:
            num_rows: Sequences and guesses together.
            seconds: It took, with nothing beside.
        """
        self._num_steps += 1
        if self._num_steps > _FEW_STEPS:
            seconds = min(seconds, _SLOW * self._mean_s)
        self._mean_s += max(1.0 / self._num_steps, _BLEND) * (seconds - self._mean_s)
        self._time.observe(num_rows, seconds)

    def of_guess(self, num_sequences: int) -> float:
        """What a guess takes of the time that it saves where it is right; from 1 on no guess pays.

        It takes the time of a row. Right, it saves its sequence a step, which is one of ``num_sequences`` that share its time.

        Args:
            num_sequences: Of the step, at least one.
        """
        fixed_s, row_s = self._time.fit
        is_known = self._num_steps >= _ENOUGH_STEPS and self._time.spread >= _LEAST_SPREAD and fixed_s + row_s > 0.0
        if not is_known:
            return num_sequences * _UNTIL_MEASURED
        return max(_LEAST, num_sequences * row_s / (fixed_s + num_sequences * row_s))
