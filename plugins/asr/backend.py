"""What a Whisper library must do for the recognizer: four batched calls over rows that belong to different requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Mel = NDArray[np.float32]
"""[mels, frames], 100 frames a second, not padded."""

FRAMES_PER_S = 100
WINDOW_FRAMES = 3000
"""The encoder always computes 30 s: shorter windows are padded, as the model was trained."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What was heard in one window: token ids with timestamps, and how sure the model is."""

    token_ids: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float


@dataclass(frozen=True, slots=True)
class Alignment:
    """When each text token was said.

    Attributes:
        token_starts_s: One time for each text token and one for the end, in seconds of the window.
        token_probs: Probability of each text token.
    """

    token_starts_s: tuple[float, ...]
    token_probs: tuple[float, ...]


class WhisperBackend(Protocol):
    """A loaded Whisper. Used by the device thread, but for `features`."""

    @property
    def tokenizer(self) -> Any:
        """The model's `tokenizers.Tokenizer`."""
        ...

    @property
    def is_multilingual(self) -> bool:
        """Whether it knows languages and translation."""
        ...

    @property
    def max_length_tokens(self) -> int:
        """Longest prompt and text together."""
        ...

    def features(self, samples: NDArray[np.float32]) -> Mel:
        """The log-mel spectrogram of at most 30 s. [pool]"""
        ...

    def encode(self, mels: Sequence[Mel]) -> list[Any]:
        """Encodes windows as one batch; the rows may be kept, dropped and mixed with others' rows."""
        ...

    def detect_language(self, rows: Sequence[Any]) -> list[tuple[str, float]]:
        """The likeliest language code of each row and its probability."""
        ...

    def generate(
        self, rows: Sequence[Any], prompts: Sequence[Sequence[int]], *, temperature: float, suppressed: Sequence[int]
    ) -> list[Hypothesis]:
        """Hears all rows as one batch. All prompts are equally long."""
        ...

    def align(
        self, rows: Sequence[Any], start: Sequence[int], texts: Sequence[Sequence[int]], num_frames: Sequence[int]
    ) -> list[Alignment]:
        """When the tokens of the texts were said; texts are not empty."""
        ...

    def close(self) -> None:
        """Gives the memory back."""
        ...


def padded(mels: Sequence[Mel]) -> NDArray[np.float32]:
    """[rows, mels, 3000], zeros behind each window, as both libraries pad."""
    batch = np.zeros((len(mels), mels[0].shape[0], WINDOW_FRAMES), dtype=np.float32)
    for row, mel in zip(batch, mels, strict=True):
        row[:, : mel.shape[1]] = mel[:, :WINDOW_FRAMES]
    return batch
