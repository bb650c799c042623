"""Measures what quantization does to an embedding model: the cosine of each vector with the unquantized model's."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sixfold.core.family import LoadContext
from sixfold.core.runtime.quantization.apply import linear_shapes
from sixfold.core.runtime.quantization.modules import held_bytes
from sixfold.core.runtime.quantization.plan import LinearShape
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.quantization.quality import Quality, QualityProbe, read_lines, sample_text
from sixfold.plugins.embedding.encoder import EncoderInput
from sixfold.plugins.embedding.loader import build_checked, read_pipeline

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_BATCH = 16


class EmbeddingQuality(QualityProbe):
    """See `QualityProbe`. Inputs are lines of text; by default the sentences and paragraphs of this project's own text."""

    def __init__(self, context: LoadContext, inputs: Path | None) -> None:
        super().__init__(context, inputs)
        torch.set_num_threads(context.num_threads)
        if inputs is None:
            paragraphs = sample_text().split("\n\n")
            self._texts = [*paragraphs, *(s for text in paragraphs for s in _SENTENCE_END.split(text))]
        else:
            self._texts = read_lines(inputs)
        self._expected: NDArray[np.float32] | None = None

    @property
    def inputs_text(self) -> str:
        """See `QualityProbe`."""
        origin = "this project's own text" if self.inputs is None else str(self.inputs)
        return f"{len(self._texts)} texts of {origin}"

    def layers(self) -> Mapping[str, tuple[LinearShape, ...]]:
        """See `QualityProbe`."""
        pipeline, _ = read_pipeline(self.context, None)
        return {"transformer": linear_shapes(pipeline.transformer)}

    def measure(self, policy: QuantizationPolicy | None, *, timed: bool) -> Quality:
        """See `QualityProbe`."""
        pipeline, _ = read_pipeline(self.context, policy)
        weight_bytes = held_bytes(pipeline.transformer)
        tokenizer = pipeline.tokenizer(getattr(self.context.options, "max_seq_length", None))
        encoder = build_checked(pipeline, tokenizer, self.context.model_name)
        sequences = tokenizer.encode_texts(self._texts, first_index=0, truncate_tokens=-1)
        inputs = [EncoderInput(token_ids=sequence, wanted=pipeline.output_types) for sequence in sequences]
        batches = [inputs[start : start + _BATCH] for start in range(0, len(inputs), _BATCH)]
        with torch.inference_mode():
            encoder.encode(batches[0])
            began_s = time.perf_counter()
            vectors = np.stack([pipeline.flatten(found) for batch in batches for found in encoder.encode(batch)])
            seconds = time.perf_counter() - began_s
        encoder.close()
        if policy is None:
            self._expected = vectors
        assert self._expected is not None, "the first call is without a policy"
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(self._expected, axis=1)
        cosines = (vectors * self._expected).sum(axis=1) / lengths
        figures = {"cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min())}
        if timed:
            figures["texts_per_s"] = len(self._texts) / seconds
        return Quality(figures=figures, weight_bytes=weight_bytes)
