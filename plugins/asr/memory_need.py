"""What a speech recognition model will take of the memory; imports nothing heavy."""

from __future__ import annotations

from typing import cast

from sixfold.core.family import ModelFiles
from sixfold.core.memory.need import HOST, MemoryNeed, MemoryQuestion
from sixfold.core.memory.weights import weights_bytes
from sixfold.core.parallel.planner import ParallelShape
from sixfold.plugins.asr.decoder_memory import DecoderSize
from sixfold.plugins.asr.options import AsrOptions, FasterWhisperOptions, TransformersOptions

# Windows of many requests with their beams, and the sound that waits for them.
_WORKING_BYTES = 256 << 20
_CUDA_BYTES = 600 << 20
_USUAL_WINDOWS = 2


def ctranslate2_need(question: MemoryQuestion) -> MemoryNeed:
    """Of ``asr/faster-whisper``: the file as it is, or doubled where half precision is computed in float32."""
    options = cast(FasterWhisperOptions, question.options)
    stored = (question.path / "model.bin").stat().st_size
    return _need(question, stored * 2 if options.compute_type == "float32" else stored)


def transformers_need(question: MemoryQuestion) -> MemoryNeed:
    """Of ``asr/transformers``: the weights in their type."""
    options = cast(TransformersOptions, question.options)
    is_float32 = options.dtype == "float32" or (options.dtype == "auto" and question.device == HOST)
    itemsize = 4 if is_float32 else 2
    caches = 0 if question.device == HOST else _decoder_bytes(question, options, itemsize)
    return _need(question, weights_bytes(question.path, itemsize=itemsize), caches)


def _decoder_bytes(question: MemoryQuestion, options: TransformersOptions, itemsize: int) -> int:
    """Of the caches that Whisper's decoder keeps on a GPU."""
    config = ModelFiles(question.path).json("config.json")
    if config.get("model_type") != "whisper":
        return 0
    size = DecoderSize(
        layers=int(config.get("decoder_layers") or 6),
        width=int(config.get("d_model") or 512),
        heard=int(config.get("max_source_positions") or 1500),
        length=int(config.get("max_target_positions") or 448),
        itemsize=itemsize,
        total_bytes=question.total_bytes,
    )
    return size.cache_bytes(max(options.beam_size, options.best_of))


def parallel_shape(question: MemoryQuestion) -> ParallelShape:
    """For the planner of ranks: Whisper's encoder over two windows."""
    options = cast(TransformersOptions, question.options)
    config = ModelFiles(question.path).json("config.json")
    is_whisper = config.get("model_type") == "whisper"
    is_float32 = options.dtype == "float32" or (options.dtype == "auto" and question.device == HOST)
    width, inner = int(config.get("d_model") or 512), int(config.get("encoder_ffn_dim") or 2048)
    layers, heads = int(config.get("encoder_layers") or 6), int(config.get("encoder_attention_heads") or 8)
    return ParallelShape(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        num_layers=layers,
        num_tokens=int(config.get("max_source_positions") or 1500),
        num_rows=_USUAL_WINDOWS if is_whisper else 1,
        parameters=layers * (4 * width * width + 2 * width * inner),
        itemsize=4 if is_float32 else 2,
        can_split_tokens=is_whisper,
    )


def _need(question: MemoryQuestion, weights: int, caches: int = 0) -> MemoryNeed:
    options = cast(AsrOptions, question.options)
    if options.diarization is not None:
        weights += weights_bytes(options.diarization.source.local_path)
    working = _WORKING_BYTES + caches + (0 if question.device == HOST else _CUDA_BYTES)
    return MemoryNeed(weights_bytes=weights, working_bytes=working)
