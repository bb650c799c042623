"""Measures what quantization does to a speech model: word errors on recordings whose words are known."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sixfold.core.errors import ConfigError
from sixfold.core.family import LoadContext
from sixfold.core.runtime.quantization.apply import linear_shapes
from sixfold.core.runtime.quantization.modules import held_bytes
from sixfold.core.runtime.quantization.plan import LinearShape
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.quantization.quality import Quality, QualityProbe, read_lines
from sixfold.plugins.asr.audio import decode_file
from sixfold.plugins.asr.transformers_loader import Network, read_network

_TABLE = "transcription.tsv"
_MAX_CLIP_S = 30.0
_MARK = re.compile(r"<\|[^|]*\|>")  # timestamps are no special tokens to the processor


class SpeechQuality(QualityProbe):
    """See `QualityProbe`. Inputs are a folder of recordings of at most 30 s with a ``transcription.tsv``: the name of a file
    without its ending, a tab, the words, and where they are not English a further tab and the language's code."""

    def __init__(self, context: LoadContext, inputs: Path | None) -> None:
        super().__init__(context, inputs)
        if inputs is None:
            raise ConfigError(
                f"Speech is measured on recordings: give --inputs FOLDER, with recordings and a {_TABLE} of lines "
                "NAME<tab>WORDS<tab>LANGUAGE."
            )
        torch.set_num_threads(context.num_threads)
        self._clips: list[NDArray[np.float32]] = []
        self._words: list[list[str]] = []
        self._languages: list[str] = []
        for line in read_lines(inputs / _TABLE):
            name, text, language, *_ = (*line.split("\t"), "", "")
            path = next((path for path in sorted(inputs.glob(f"{name}.*"))), None)
            if path is None:
                raise ConfigError(f"--inputs: {inputs} has no recording {name!r}, which its {_TABLE} names.")
            blocks = decode_file(path.read_bytes(), max_duration_s=_MAX_CLIP_S)
            self._clips.append(np.concatenate(list(blocks)).astype(np.float32) / np.float32(32_768))
            self._words.append(words_of(text))
            self._languages.append(language or "en")
        self._expected: list[list[str]] | None = None

    @property
    def inputs_text(self) -> str:
        """See `QualityProbe`."""
        return f"{len(self._clips)} recordings of {self.inputs}, {sum(map(len, self._words))} words"

    def layers(self) -> Mapping[str, tuple[LinearShape, ...]]:
        """See `QualityProbe`."""
        network = read_network(self.context, None)
        return {name: linear_shapes(part.module) for name, part in network.components.items()}

    def measure(self, policy: QuantizationPolicy | None, *, timed: bool) -> Quality:
        """See `QualityProbe`."""
        network = read_network(self.context, policy)
        began_s = time.perf_counter()
        found = [
            words_of(_transcribe(network, clip, language))
            for clip, language in zip(self._clips, self._languages, strict=True)
        ]
        seconds = time.perf_counter() - began_s
        if policy is None:
            self._expected = found
        assert self._expected is not None, "the first call is without a policy"
        figures = {
            "word_error_rate": word_error_rate(found, self._words),
            "words_changed": word_error_rate(found, self._expected),
        }
        if timed:
            figures["audio_s_per_s"] = sum(map(len, self._clips)) / 16_000 / seconds
        return Quality(figures=figures, weight_bytes=held_bytes(network.model))


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return "".join(c if c.isalnum() or c in "' " else " " for c in text.lower()).split()


def word_error_rate(found: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> float:
    """Words to insert, delete or replace, as a share of the expected ones.

    Source: Levenshtein 1966.
    """
    errors = sum(_distance(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    return errors / max(1, sum(map(len, expected)))


def _distance(one: Sequence[str], other: Sequence[str]) -> int:
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, theirs in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != theirs))
    return row[-1]


@torch.inference_mode()
def _transcribe(network: Network, clip: NDArray[np.float32], language: str) -> str:
    model, processor = network.model, network.processor
    features: Any = processor(clip, sampling_rate=16_000, return_tensors="pt")
    if network.is_whisper:
        # With timestamps, since a window without them does not end where the words do.
        asked = {"language": language} if model.generation_config.is_multilingual else {}
        ids = model.generate(
            features.input_features.to(model.device, model.dtype), return_timestamps=True, num_beams=1, **asked
        )
    else:
        ids = model(features.input_values.to(model.device, model.dtype)).logits.argmax(-1)
    return _MARK.sub("", str(processor.batch_decode(ids, skip_special_tokens=True)[0]))
