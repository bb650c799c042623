"""What a language model will take of the memory, from its config and the headers of its weights; imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from sixfold.core.family import ModelFiles
from sixfold.core.memory.need import HOST, TORCH_PROCESS_BYTES, MemoryNeed, MemoryQuestion
from sixfold.core.memory.quantized import planned_bytes
from sixfold.core.memory.weights import StoredTensor, folder_tensors, weights_bytes
from sixfold.core.parallel.planner import ParallelShape
from sixfold.core.runtime.quantization.plan import LinearShape, plan
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.plugins.llm.cache_policy import CacheScheme, head_token_bytes, split
from sixfold.plugins.llm.head_policy import LAYERS, LM_HEAD, with_better_head
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.vllm_options import VllmOptions

_CPU_CACHE_BYTES = 1 << 30
GPU_CACHE_SHARE = 0.8
"""Of what is free beside the weights."""

# Chunks of so many tokens are worth the exchange between ranks: a 1B model computes them in 10 ms on an H100, and an exchange
# takes 0.1 ms a layer. On a host ranks share the cores, so no prompt is worth it; there it is for trying out.
_GPU_PARALLEL_TOKENS = 2048
_CPU_PARALLEL_TOKENS = 256
_LONG_PROMPT_TOKENS = 16_384
_STEP_TOKENS = 4096
_LOGITS_ROWS = 64
# What the allocator keeps between steps, and the tables of grammars: measured with a model of 135 million weights.
_KEPT_BYTES = 256 << 20
# Contexts of CUDA, of its libraries, and captured graphs.
_CUDA_BYTES = 600 << 20
_TOKEN_TABLES = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_HEAD = "lm_head.weight"
# Weights that are no linear layers of transformers and so keep their type, of those that have two dimensions.
_NO_LINEARS = re.compile(r"embed|norm|\.experts\.|(^|\.)(wte|wpe)\.|\.(c_attn|c_proj|c_fc)\.")
_BASE = re.compile(r"^(model|transformer|gpt_neox)\.(language_model\.|text_model\.)?")
_VLLM_PROCESS_BYTES = 3 * TORCH_PROCESS_BYTES  # the worker, and the engine's own process with what it compiles
_VLLM_CPU_CACHE_BYTES = 4 << 30  # its own default


def default_cpu_cache_bytes(free_bytes: int) -> int:
    """The cache where nobody says: 1 GiB, at most half of what is free."""
    return min(_CPU_CACHE_BYTES, free_bytes // 2)


def need(question: MemoryQuestion) -> MemoryNeed:
    """Of the family ``llm/transformers``: weights in its type, a cache by the options, and the largest step."""
    options = cast(TransformersOptions, question.options)
    itemsize = _itemsize(options.dtype, has_bfloat16=question.has_bfloat16)
    on_cpu = question.device == HOST
    packs = on_cpu and options.compute_packed
    config = _text_config(question.path)
    weights = _decoder_bytes(question.path, itemsize, packs=packs)
    policy = split(question.quantization, place="quantization")
    loading = 0
    if policy.weights is not None:
        loading = _loading_bytes(question, itemsize)
        weights -= _saved_bytes(question, policy.weights, itemsize, packs=packs)
    token_bytes = _token_bytes(config, itemsize, policy.scheme)
    cache_bytes = options.kv_cache_bytes or (
        default_cpu_cache_bytes(question.free_bytes) if on_cpu else token_bytes * 32
    )
    if options.speculation.source is not None:  # its cache holds as many tokens
        draft = options.speculation.source.local_path
        weights += _decoder_bytes(draft, itemsize, packs=packs)
        draft_token_bytes = _token_bytes(_text_config(draft), itemsize)
        cache_bytes += cache_bytes * draft_token_bytes // max(token_bytes, 1)
        token_bytes += draft_token_bytes
    return MemoryNeed(
        weights_bytes=weights,
        cache_bytes=cache_bytes,
        cache_share=0.0 if on_cpu or options.kv_cache_bytes else GPU_CACHE_SHARE,
        cache_token_bytes=token_bytes,
        cache_option="kv_cache_bytes",
        working_bytes=_step_bytes(config, itemsize) + (_KEPT_BYTES if on_cpu else _CUDA_BYTES),
        loading_bytes=loading,
        process_bytes=TORCH_PROCESS_BYTES + (options.kv_offload_bytes or 0),
    )


def parallel_tokens(options: TransformersOptions, device: str) -> int:
    """From how many tokens on a chunk of a prompt is computed by all ranks."""
    return options.parallel_prompt_tokens or (_CPU_PARALLEL_TOKENS if device == HOST else _GPU_PARALLEL_TOKENS)


def parallel_shape(question: MemoryQuestion) -> ParallelShape:
    """For the planner of ranks: a long prompt, as long as the model takes; the chunks that steps cut it into are alike."""
    options = cast(TransformersOptions, question.options)
    itemsize = _itemsize(options.dtype, has_bfloat16=question.has_bfloat16)
    config = _text_config(question.path)
    heads = _Heads.of_config(config)
    longest = options.max_model_len or int(config.get("max_position_embeddings") or _LONG_PROMPT_TOKENS)
    return ParallelShape(
        num_heads=heads.num_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        num_layers=heads.num_layers,
        num_tokens=min(longest, _LONG_PROMPT_TOKENS),
        num_rows=1,
        parameters=weights_bytes(question.path, itemsize=itemsize) // itemsize,
        itemsize=itemsize,
        # As `check_degrees` has it, so that `auto` chooses nothing that is refused at the load.
        can_split_tokens=longest >= parallel_tokens(options, question.device)
        and not _looks_back(config)
        and options.speculation.method != "eagle3",
    )


def _looks_back(config: dict[str, Any]) -> bool:
    """Whether layers see a window only, or cap their scores: such attention is not divided."""
    windowed = bool(config.get("sliding_window")) and config.get("use_sliding_window") is not False
    return windowed or config.get("attn_logit_softcapping") is not None


def vllm_need(question: MemoryQuestion) -> MemoryNeed:
    """Of the family ``llm/vllm``: its share of the first GPU, whatever the model; with several, each has as much."""
    options = cast(VllmOptions, question.options)
    itemsize = 4 if options.dtype == "float32" else 2
    config = _text_config(question.path)
    weights = weights_bytes(question.path, itemsize=None if options.quantization else itemsize)
    weights //= options.tensor_parallel_size * options.pipeline_parallel_size
    token_bytes = _token_bytes(config, 1 if options.kv_cache_dtype.startswith("fp8") else itemsize)
    if question.device == HOST:
        working, cache = _KEPT_BYTES, options.kv_cache_bytes or _VLLM_CPU_CACHE_BYTES
    else:
        share = int(question.total_bytes * options.gpu_memory_utilization)
        working = _step_bytes(config, itemsize) + _CUDA_BYTES
        cache = options.kv_cache_bytes or max(share - weights - working, 0)
    return MemoryNeed(
        weights_bytes=weights,
        cache_bytes=cache,
        cache_token_bytes=token_bytes // options.tensor_parallel_size,
        cache_option="kv_cache_bytes",
        working_bytes=working,
        process_bytes=_VLLM_PROCESS_BYTES,
    )


def _itemsize(dtype: str, *, has_bfloat16: bool) -> int:
    """Bytes of a weight; ``auto`` as `sixfold.plugins.llm.stock_model.choose_dtype` decides it."""
    return 4 if dtype == "float32" or (dtype == "auto" and not has_bfloat16) else 2


def _decoder_bytes(path: Path, itemsize: int, *, packs: bool) -> int:
    size = weights_bytes(path, itemsize=itemsize)
    table = _tied_table(folder_tensors(path))
    if packs and table is not None:
        size += table.bytes_as(itemsize)  # the head's packed copy comes on top
    return size


def _loading_bytes(question: MemoryQuestion, itemsize: int) -> int:
    """The weights that lie on the device before the first of them is quantized: the reference is computed with them."""
    tensors = folder_tensors(question.path)
    if question.device == HOST and tensors:
        # What is stored in the model's own type stays in the pages of its file, which the system takes back at will.
        own_type = "F32" if itemsize == 4 else "BF16"
        return sum(tensor.bytes_as(itemsize) for tensor in tensors if tensor.dtype != own_type)
    return weights_bytes(question.path, itemsize=itemsize)


def _tied_table(tensors: Sequence[StoredTensor]) -> StoredTensor | None:
    """The table of tokens where it is the head's weight, too."""
    is_tied = not any(tensor.name.endswith(_HEAD) for tensor in tensors)
    return next((tensor for tensor in tensors if is_tied and tensor.name.endswith(_TOKEN_TABLES)), None)


def _saved_bytes(question: MemoryQuestion, policy: QuantizationPolicy, itemsize: int, *, packs: bool) -> int:
    """By how much quantized layers are smaller; negative where a tied head needs a copy that it would not have."""
    tensors = folder_tensors(question.path)
    reads_images = "vision_config" in ModelFiles(question.path).json("config.json")
    table = _tied_table(tensors)
    head = table or next((tensor for tensor in tensors if tensor.name.endswith(_HEAD)), None)
    linears = [
        t for t in tensors if _is_linear(t) and (not reads_images or re.search("language_model|text_model", t.name))
    ]
    parts = {LAYERS: [_shape(t, _BASE.sub("", t.name)) for t in linears]}
    if head is not None:
        parts[LM_HEAD] = [_shape(head, _HEAD)]
    wide = with_better_head(policy)
    saved = 0
    for name, layers in parts.items():
        own = wide.of(name)
        decisions = [d for d in plan(layers, own) if d.method is not None] if own is not None else []
        before = sum(d.layer.num_weights for d in decisions) * itemsize
        if name == LM_HEAD and table is not None and not packs:
            before = 0  # it was the table itself
        saved += before - planned_bytes(decisions, itemsize=itemsize, device=question.device)
    return saved


def _is_linear(tensor: StoredTensor) -> bool:
    is_matrix = tensor.is_float and len(tensor.shape) == 2 and tensor.name.endswith(".weight")
    return is_matrix and not tensor.name.endswith(_HEAD) and not _NO_LINEARS.search(tensor.name)


def _shape(tensor: StoredTensor, name: str) -> LinearShape:
    return LinearShape(name.removesuffix(".weight"), tensor.shape[0], tensor.shape[1])


def _token_bytes(config: dict[str, Any], itemsize: int, scheme: CacheScheme | None = None) -> int:
    """Keys and values of one token in all layers."""
    heads = _Heads.of_config(config)
    return 2 * heads.num_layers * heads.num_kv_heads * head_token_bytes(heads.head_dim, itemsize, scheme)


class _Heads(NamedTuple):
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> _Heads:
        num_heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
        hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
        return cls(
            num_layers=int(config.get("num_hidden_layers") or config.get("n_layer") or 0),
            num_heads=num_heads,
            num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
            head_dim=int(config.get("head_dim") or hidden // num_heads),
        )


def _step_bytes(config: dict[str, Any], itemsize: int) -> int:
    """The largest step: activations of one layer for all its tokens, and the logits of those that speak."""
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    return _STEP_TOKENS * (6 * hidden + 2 * inner) * itemsize + _LOGITS_ROWS * int(config.get("vocab_size") or 0) * 4


def _text_config(path: Path) -> dict[str, Any]:
    config = ModelFiles(path).json("config.json")
    return cast("dict[str, Any]", config.get("text_config") or config)
