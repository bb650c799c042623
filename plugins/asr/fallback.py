"""Whisper's temperature fallback: which attempt at a window is good enough, and which is the best of bad ones."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from sixfold.plugins.asr.backend import Hypothesis

_MAX_COMPRESSION_RATIO = 2.4
_MIN_AVG_LOGPROB = -1.0
_MIN_NO_SPEECH_PROB = 0.6
LADDER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The temperatures that are tried in turn. Source: Radford et al. 2022, section 4.5."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A hypothesis with what it was made at and how repetitive its text is."""

    hypothesis: Hypothesis
    temperature: float
    compression_ratio: float

    @property
    def is_silence(self) -> bool:
        """No speech, by the model's own word, and the text is a guess."""
        heard = self.hypothesis
        return heard.no_speech_prob > _MIN_NO_SPEECH_PROB and heard.avg_logprob <= _MIN_AVG_LOGPROB

    @property
    def is_repetitive(self) -> bool:
        """The text compresses too well to be speech."""
        return self.compression_ratio > _MAX_COMPRESSION_RATIO

    @property
    def is_good(self) -> bool:
        """No other temperature need be tried."""
        improbable = self.hypothesis.avg_logprob < _MIN_AVG_LOGPROB
        return self.is_silence or not (self.is_repetitive or improbable)


def temperatures(wanted: float) -> tuple[float, ...]:
    """The temperatures to try: the whole ladder for 0, else the one that was asked for."""
    return LADDER if wanted == 0 else (wanted,)


def best(attempts: Sequence[Attempt]) -> Attempt:
    """The last attempt if it is good, else the likeliest that does not repeat itself, else the likeliest."""
    if attempts[-1].is_good:
        return attempts[-1]
    varied = [attempt for attempt in attempts if not attempt.is_repetitive]
    return max(varied or attempts, key=lambda attempt: attempt.hypothesis.avg_logprob)


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes of its zlib form."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))
