"""How fast replicas compute prompts, learnt from the prompts that they compute; what the operator declared is where it starts."""

from __future__ import annotations

import math

from sixfold.core.decisions import DecisionLog

_MEMORY_S = 120.0
"""After so long, a measurement has lost two thirds of its weight."""
_PRIOR_S = 1.0
"""The declared speed weighs as much as a prompt of so long."""
_BOUND = 4.0
"""The speed stays within this factor of what was declared: further off, the declaration is wrong and its figures with it."""
_WORTH_TELLING = 0.2


class PrefillSpeed:
    """The speed of one model's replicas, all prompts together.

    Old measurements fade by time, so that the declared speed comes back where nothing is measured: a speed that was found
    too low once, and so sends nobody there any more, does not keep itself.

    Args:
        declared_tokens_per_s: By the operator.
        model: Named in decisions.
        decisions: Told where the speed has got to.
    """

    def __init__(self, declared_tokens_per_s: float, *, model: str, decisions: DecisionLog) -> None:
        self._declared = declared_tokens_per_s
        self._model = model
        self._decisions = decisions
        self._tokens = 0.0
        self._seconds = 0.0
        self._faded_s = 0.0
        self._tell(declared_tokens_per_s)

    def tokens_per_s(self, now_s: float) -> float:
        """Prompt tokens that one replica computes in a second."""
        self._fade(now_s)
        found = (self._declared * _PRIOR_S + self._tokens) / (_PRIOR_S + self._seconds)
        return min(max(found, self._declared / _BOUND), self._declared * _BOUND)

    def observe(self, num_tokens: float, seconds: float, now_s: float) -> None:
        """A prompt was computed.

        Args:
            num_tokens: Uncached tokens of it and of those that waited there before it.
            seconds: From when it was sent until it was computed.
            now_s: Monotonic.
        """
        self._fade(now_s)
        self._tokens += num_tokens
        self._seconds += max(seconds, 0.0)
        self._tell(self.tokens_per_s(now_s))

    def _fade(self, now_s: float) -> None:
        left = math.exp(-max(0.0, now_s - self._faded_s) / _MEMORY_S)
        self._tokens *= left
        self._seconds *= left
        self._faded_s = max(now_s, self._faded_s)

    def _tell(self, tokens_per_s: float) -> None:
        self._decisions.moved(
            "prefill_tokens_per_s",
            tokens_per_s,
            lambda: f"{self._tokens:.0f} prompt tokens took {self._seconds:.3g} s lately",
            objective=f"least waiting of all; declared {self._declared:g}, "
            f"{self._declared / _BOUND:g}..{self._declared * _BOUND:g}",
            least=_WORTH_TELLING,
            source=self._model,
        )
