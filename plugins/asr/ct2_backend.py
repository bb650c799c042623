"""Whisper through CTranslate2, the engine below faster-whisper, driven in batches that mix requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sixfold.plugins.asr.backend import Alignment, Hypothesis, Mel, padded
from sixfold.plugins.asr.untyped import ctranslate2, faster_whisper_features

_MAX_LENGTH_TOKENS = 448
_MAX_INITIAL_TIMESTAMP = 50  # one second: the first phrase of a window begins early, as in OpenAI's own decoder
_S_PER_POSITION = 0.02
_STORAGE: Any = ctranslate2.StorageView


class CTranslate2Backend:
    """See `WhisperBackend`. A row is a numpy array [1500, width] in the processor's memory, whatever the device.

    Args:
        path: A folder that ctranslate2's converter wrote, with ``tokenizer.json``.
        device: "cpu" or "cuda:N".
        compute_type: Of CTranslate2.
        num_threads: Of one step.
        beam_size: At temperature 0.
        best_of: Above it.
    """

    is_multilingual: bool
    max_length_tokens = _MAX_LENGTH_TOKENS

    def __init__(
        self, path: Path, *, device: str, compute_type: str, num_threads: int, beam_size: int, best_of: int
    ) -> None:
        kind, _, index = device.partition(":")
        model: Any = ctranslate2.models.Whisper(
            str(path),
            device=kind,
            device_index=int(index or 0),
            compute_type=compute_type,
            inter_threads=1,
            intra_threads=num_threads,
        )
        self._model = model
        self._beam_size = beam_size
        self._best_of = best_of
        self._extractor: Any = faster_whisper_features.FeatureExtractor(**_feature_settings(path, model.n_mels))
        self.tokenizer: Any = Tokenizer.from_file(str(path / "tokenizer.json"))
        self.is_multilingual = bool(model.is_multilingual)
        self.compute_type: str = model.compute_type

    def features(self, samples: NDArray[np.float32]) -> Mel:
        """See `WhisperBackend`."""
        mel: Mel = self._extractor(samples)[..., :-1]
        return np.ascontiguousarray(mel, dtype=np.float32)

    def encode(self, mels: Sequence[Mel]) -> list[Any]:
        """See `WhisperBackend`."""
        batch = self._model.encode(_STORAGE.from_array(padded(mels)), to_cpu=True)
        if "16" in str(batch.dtype):
            batch = batch.to(ctranslate2.DataType.float32)
        # Each row is a copy of its own, so that a window that leaves gives its memory back.
        return [row.copy() for row in np.array(batch)]

    def detect_language(self, rows: Sequence[Any]) -> list[tuple[str, float]]:
        """See `WhisperBackend`."""
        found = self._model.detect_language(_stored(rows))
        return [(str(best[0][0])[2:-2], float(best[0][1])) for best in found]

    def generate(
        self, rows: Sequence[Any], prompts: Sequence[Sequence[int]], *, temperature: float, suppressed: Sequence[int]
    ) -> list[Hypothesis]:
        """See `WhisperBackend`."""
        search: dict[str, Any] = {"beam_size": self._beam_size}
        if temperature > 0:
            search = {
                "beam_size": 1,
                "num_hypotheses": self._best_of,
                "sampling_topk": 0,
                "sampling_temperature": temperature,
            }
        results = self._model.generate(
            _stored(rows),
            [list(prompt) for prompt in prompts],
            max_length=_MAX_LENGTH_TOKENS,
            max_initial_timestamp_index=_MAX_INITIAL_TIMESTAMP,
            suppress_tokens=list(suppressed),
            return_scores=True,
            return_no_speech_prob=True,
            **search,
        )
        return [_hypothesis(result) for result in results]

    def align(
        self, rows: Sequence[Any], start: Sequence[int], texts: Sequence[Sequence[int]], num_frames: Sequence[int]
    ) -> list[Alignment]:
        """See `WhisperBackend`."""
        results = self._model.align(_stored(rows), list(start), [list(text) for text in texts], list(num_frames))
        return [_alignment(result, len(text)) for result, text in zip(results, texts, strict=True)]

    def close(self) -> None:
        """See `WhisperBackend`."""
        self._model.unload_model()


def _feature_settings(path: Path, num_mels: int) -> dict[str, Any]:
    file = path / "preprocessor_config.json"
    if not file.exists():
        return {"feature_size": num_mels}
    known = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft")
    return {name: value for name, value in json.loads(file.read_text()).items() if name in known}


def _stored(rows: Sequence[Any]) -> Any:
    return _STORAGE.from_array(np.stack(rows))


def _hypothesis(result: Any) -> Hypothesis:
    tokens = tuple(result.sequences_ids[0])
    # The score is a mean over the tokens; Whisper's threshold counts the end token, too.
    logprob = float(result.scores[0]) * len(tokens) / (len(tokens) + 1)
    return Hypothesis(tokens, logprob, float(result.no_speech_prob))


def _alignment(result: Any, num_tokens: int) -> Alignment:
    """The path is a list of (token, position); a token begins at its first position."""
    starts = [0.0] * (num_tokens + 1)
    seen = -1
    for token, position in result.alignments:
        if token != seen and token <= num_tokens:
            starts[token] = position * _S_PER_POSITION
            seen = token
    probs = tuple(float(p) for p in result.text_token_probs[:num_tokens])
    return Alignment(tuple(starts), probs)
