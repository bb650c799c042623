"""What a speech model will take of the memory; imports nothing heavy."""

from __future__ import annotations

from typing import cast

from sixfold.core.family import ModelFiles
from sixfold.core.memory.need import HOST, MemoryNeed, MemoryQuestion
from sixfold.core.memory.weights import weights_bytes
from sixfold.plugins.tts.options import KokoroOptions

# onnxruntime's arena grows to the longest sentence of each lane: measured with Kokoro, two lanes.
_LANE_BYTES = 400 << 20
_VITS_WORKING_BYTES = 256 << 20
_CUDA_BYTES = 600 << 20
_CACHE_BYTES = {"speecht5": 32 * 76 << 20}  # of the longest sentences, as many as it speaks at once
_GRAPH_BYTES = {"vits": 128 * 4 << 20}  # of as many lengths as are recorded; seven hundred kernels each, estimated


def kokoro_need(question: MemoryQuestion) -> MemoryNeed:
    """Of ``tts/kokoro``: the network and its voices, and what each lane computes in."""
    options = cast(KokoroOptions, question.options)
    num_lanes = options.num_lanes or question.num_threads
    return MemoryNeed(weights_bytes=weights_bytes(question.path), working_bytes=num_lanes * _LANE_BYTES)


def vits_need(question: MemoryQuestion) -> MemoryNeed:
    """Of ``tts/transformers``: weights in float32, and one padded batch of VITS or the caches of SpeechT5."""
    kind = str(ModelFiles(question.path).json("config.json").get("model_type"))
    working_bytes = _VITS_WORKING_BYTES + _CACHE_BYTES.get(kind, 0)
    if question.device != HOST:
        working_bytes += _CUDA_BYTES + _GRAPH_BYTES.get(kind, 0)
    return MemoryNeed(weights_bytes=weights_bytes(question.path, itemsize=4), working_bytes=working_bytes)
