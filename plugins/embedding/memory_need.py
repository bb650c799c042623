"""What an embedding model or a cross-encoder will take of the memory; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from sixfold.core.family import ModelFiles
from sixfold.core.memory.need import HOST, TORCH_PROCESS_BYTES, MemoryNeed, MemoryQuestion
from sixfold.core.memory.weights import weights_bytes
from sixfold.core.parallel.planner import ParallelShape
from sixfold.plugins.embedding.clip.options import ClipOptions
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.rerank.options import CrossEncoderOptions
from sixfold.plugins.embedding.vllm_options import VllmEmbeddingOptions

_STEP_TOKENS = 16_384  # the most of a step
_GPU_PARALLEL_TOKENS = 2048
_CPU_PARALLEL_TOKENS = 256
DIVIDED_TYPES = frozenset({"bert", "roberta", "xlm-roberta", "llama", "qwen2", "qwen3"})
"""Of models that are known to run packed, which ranks need; how any other runs is seen only once it is loaded."""
_KEPT_BYTES = 64 << 20
_CUDA_BYTES = 600 << 20
_VLLM_CPU_CACHE_BYTES = 4 << 30


def need(question: MemoryQuestion) -> MemoryNeed:
    """Of the families that run encoders: weights in their type, and the activations of the largest step."""
    options = cast("EmbeddingOptions | CrossEncoderOptions | ClipOptions", question.options)
    itemsize = 2 if options.dtype == "bfloat16" else 4
    hidden, inner = _widths(question)
    return MemoryNeed(
        # The transformer of a sentence-transformers folder is the folder itself, or one in it; exports for other runtimes
        # (onnx, openvino) lie beside the former and are not loaded.
        weights_bytes=weights_bytes(question.path, itemsize=itemsize)
        or weights_bytes(question.path, itemsize=itemsize, recursive=True),
        working_bytes=_STEP_TOKENS * (4 * hidden + inner) * itemsize
        + (_KEPT_BYTES if question.device == HOST else _CUDA_BYTES),
    )


def parallel_tokens(options: EmbeddingOptions, device: str) -> int:
    """From how many tokens on a document is computed by all ranks. On a host they share the cores: it is there to be tried."""
    return options.parallel_tokens or (_CPU_PARALLEL_TOKENS if device == HOST else _GPU_PARALLEL_TOKENS)


def parallel_shape(question: MemoryQuestion) -> ParallelShape:
    """For the planner of ranks: the longest document that the model takes."""
    options = cast(EmbeddingOptions, question.options)
    files = ModelFiles(question.path)
    configs = [files.json(name) for name in ("config.json", "0_Transformer/config.json")]
    config = configs[0] or configs[1]
    itemsize = 2 if options.dtype == "bfloat16" else 4
    heads = int(config.get("num_attention_heads") or config.get("n_heads") or 12)
    hidden, _ = _widths(question)
    longest = options.max_seq_length or int(config.get("max_position_embeddings") or 512)
    weights = weights_bytes(question.path, itemsize=1) or weights_bytes(question.path, itemsize=1, recursive=True)
    return ParallelShape(
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        num_layers=int(config.get("num_hidden_layers") or config.get("n_layers") or 12),
        num_tokens=min(longest, _STEP_TOKENS),
        num_rows=1,
        parameters=weights,
        itemsize=itemsize,
        can_split_tokens=longest >= parallel_tokens(options, question.device) and _can_be_divided(config),
    )


def _can_be_divided(config: Mapping[str, Any]) -> bool:
    """Whether ranks can share a document's tokens for sure: a wrong yes would keep a model that runs alone from loading."""
    has_windows = config.get("local_attention") or (
        config.get("sliding_window") and config.get("use_sliding_window") is not False
    )
    has_own_positions = config.get("position_embedding_type", "absolute") != "absolute"
    return config.get("model_type") in DIVIDED_TYPES and not has_windows and not has_own_positions


def vllm_need(question: MemoryQuestion) -> MemoryNeed:
    """Of ``embedding/vllm``: its share of the GPU, whatever the model."""
    options = cast(VllmEmbeddingOptions, question.options)
    weights = weights_bytes(question.path, itemsize=4 if options.dtype == "float32" else 2)
    weights //= options.tensor_parallel_size
    share = int(question.total_bytes * options.gpu_memory_utilization)
    on_cpu = question.device == HOST
    cache = _VLLM_CPU_CACHE_BYTES if on_cpu else max(share - weights - _CUDA_BYTES, 0)
    return MemoryNeed(
        weights_bytes=weights,
        cache_bytes=options.kv_cache_bytes or cache,
        cache_option="kv_cache_bytes",
        working_bytes=_KEPT_BYTES if on_cpu else _CUDA_BYTES,
        process_bytes=3 * TORCH_PROCESS_BYTES,  # the worker and the engine's own process
    )


def _widths(question: MemoryQuestion) -> tuple[int, int]:
    files = ModelFiles(question.path)
    for name in ("config.json", "0_Transformer/config.json", "0_CLIPModel/config.json"):
        config = files.json(name)
        config = config.get("text_config") or config
        hidden = int(config.get("hidden_size") or config.get("dim") or 0)
        if hidden:
            return hidden, int(config.get("intermediate_size") or config.get("hidden_dim") or 4 * hidden)
    return 1024, 4096
