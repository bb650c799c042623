"""From the options of an entry to the arguments of an engine; knows vLLM's names, imports nothing of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sixfold.core.errors import ConfigError
from sixfold.core.validation import did_you_mean
from sixfold.plugins.llm.schema import MAX_TOP_LOGPROBS
from sixfold.plugins.llm.vllm_options import VllmOptions

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

# Named alike on both sides.
_SAME = (
    "dtype",
    "max_model_len",
    "gpu_memory_utilization",
    "kv_cache_dtype",
    "quantization",
    "load_format",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "enable_expert_parallel",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enforce_eager",
    "speculative_config",
    "kv_transfer_config",
    "kv_events_config",
)
# What the family itself decides, with the reason for whoever tries to set it in ``engine_args``.
_OWN = {
    "model": "it is the entry's source",
    "tokenizer": "it comes with the model",
    "skip_tokenizer_init": "answers are text",
    "generation_config": "the family applies the model's own sampling defaults",
    "disable_log_stats": "the family's metrics need them",
    "enable_lora": "set options.lora",
    "max_loras": "set options.lora.max_adapters",
    "max_lora_rank": "set options.lora.max_rank",
    "enable_prefix_caching": "set options.prefix_cache",
    "structured_outputs_config": "forms are written for the one backend that the family sets",
    "reasoning_parser": "set options.reasoning_parser",
    "enable_sleep_mode": "set options.sleep_after_s",
    "kv_cache_memory_bytes": "set options.kv_cache_bytes",
    "runner": "the family decides it",
    "trust_remote_code": "code of a model's files is never run",
}


def engine_arguments(options: VllmOptions, path: Path, *, known: Iterable[str], model_name: str) -> dict[str, Any]:
    """The keyword arguments of ``AsyncEngineArgs``.

    Args:
        options: Of the entry.
        path: The model's files.
        known: The fields that the installed version has.
        model_name: For messages.

    Raises:
        ConfigError: ``engine_args`` has a name that vLLM does not know or that the family sets itself.
    """
    known = frozenset(known)
    arguments: dict[str, Any] = {
        "model": str(path),
        # The family fills in what a request leaves out, by the same rules as the native runtime.
        "generation_config": "vllm",
        "disable_log_stats": True,  # the default loggers: ours counts, and nobody scrapes this process
        "max_logprobs": MAX_TOP_LOGPROBS,
        "kv_cache_memory_bytes": options.kv_cache_bytes,
        "enable_sleep_mode": options.sleep_after_s is not None,
        "enable_prefix_caching": options.prefix_cache != "off",
        # The library and the notation of the native runtime.
        "structured_outputs_config": {"backend": "guidance"},
    }
    arguments |= {name: getattr(options, name) for name in _SAME}
    if options.lora is not None:
        arguments["enable_lora"] = True
        arguments["max_loras"] = options.lora.max_adapters
        arguments["max_lora_rank"] = _lora_rank(options.lora.max_rank, model_name)
    check_engine_args(options.engine_args, taken=arguments, known=known, model_name=model_name)
    arguments = {name: value for name, value in arguments.items() if value is not None}
    return arguments | options.engine_args


def _lora_rank(max_rank: int, model_name: str) -> int:
    """The least of the ranks that vLLM makes room for."""
    for rank in _LORA_RANKS:
        if rank >= max_rank:
            return rank
    raise ConfigError(
        f"models.{model_name}.options.lora.max_rank: vLLM has adapters of rank {_LORA_RANKS[-1]} at most, not {max_rank}."
    )


def check_engine_args(
    given: Mapping[str, object], *, taken: Iterable[str], known: frozenset[str], model_name: str
) -> None:
    """Refuses names that would be ignored or fight with an option.

    Raises:
        ConfigError: Names the key and what to do.
    """
    place = f"models.{model_name}.options.engine_args"
    options = frozenset(taken) & VllmOptions.model_fields.keys()
    for name in given:
        if name in _OWN:
            raise ConfigError(f"{place}.{name}: can't be set here: {_OWN[name]}. Remove it.")
        if name in options:
            raise ConfigError(f"{place}.{name}: is an option of the family. Set options.{name} instead.")
        if name not in known:
            raise ConfigError(f"{place}.{name}: this vLLM has no such argument. {did_you_mean(name, known - options)}")
