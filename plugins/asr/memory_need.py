"""What a speech recognition model will take of the memory; imports nothing heavy."""

from __future__ import annotations

from typing import cast

from sixfold.core.memory.need import HOST, MemoryNeed, MemoryQuestion
from sixfold.core.memory.weights import weights_bytes
from sixfold.plugins.asr.options import AsrOptions, FasterWhisperOptions, TransformersOptions

# Windows of many requests with their beams, and the sound that waits for them.
_WORKING_BYTES = 256 << 20
_CUDA_BYTES = 600 << 20


def ctranslate2_need(question: MemoryQuestion) -> MemoryNeed:
    """Of ``asr/faster-whisper``: the file as it is, or doubled where half precision is computed in float32."""
    options = cast(FasterWhisperOptions, question.options)
    stored = (question.path / "model.bin").stat().st_size
    return _need(question, stored * 2 if options.compute_type == "float32" else stored)


def transformers_need(question: MemoryQuestion) -> MemoryNeed:
    """Of ``asr/transformers``: the weights in their type."""
    options = cast(TransformersOptions, question.options)
    is_float32 = options.dtype == "float32" or (options.dtype == "auto" and question.device == HOST)
    return _need(question, weights_bytes(question.path, itemsize=4 if is_float32 else 2))


def _need(question: MemoryQuestion, weights: int) -> MemoryNeed:
    options = cast(AsrOptions, question.options)
    if options.diarization is not None:
        weights += weights_bytes(options.diarization.source.local_path)
    return MemoryNeed(
        weights_bytes=weights, working_bytes=_WORKING_BYTES + (0 if question.device == HOST else _CUDA_BYTES)
    )
