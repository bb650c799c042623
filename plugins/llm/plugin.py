"""Entry point of the language model plugin; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sixfold.core.benchmark.workload import Workload
from sixfold.core.family import Family, MetricKind, MetricSpec, ModelFiles
from sixfold.core.hookspecs import Api, Command, Progress, hookimpl
from sixfold.core.runtime.quantization.methods import CACHE_METHODS, LINEAR_METHODS
from sixfold.core.telemetry.names import TraceNames
from sixfold.plugins.llm import memory_need
from sixfold.plugins.llm.cli import COMMAND
from sixfold.plugins.llm.generation import ChatInput, CompletionInput, Generation, TextDelta
from sixfold.plugins.llm.lora_options import adapter_names, differ_in_adapters_only
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.probes import PROBES
from sixfold.plugins.llm.vllm_metrics import METRICS as VLLM_METRICS
from sixfold.plugins.llm.vllm_options import VllmOptions
from sixfold.plugins.llm.workloads import WORKLOADS

LlmOptions = TransformersOptions | VllmOptions

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")

_TRACE_NAMES = TraceNames(
    prepare="tokenize", first="prefill", rest="decode", finish="detokenize", operations={"complete": "text_completion"}
)


def detect(files: ModelFiles) -> int:
    """90 for a language model with its tokenizer, 50 if only its generation config says so, else 0."""
    config = files.json("config.json")
    if not config or files.has("modules.json") or files.has("config_sentence_transformers.json"):
        return 0
    if not any(files.has(name) for name in _TOKENIZER_FILES):
        return 0
    architectures: list[object] = config.get("architectures") or []
    if any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return 90
    if "text_config" in config and any(str(name).endswith("ForConditionalGeneration") for name in architectures):
        return 90  # one that reads images, too
    may_generate = not architectures and files.has("generation_config.json")
    return 50 if may_generate and not config.get("is_encoder_decoder") else 0


def _adjusts(old: LlmOptions, new: LlmOptions) -> bool:
    return differ_in_adapters_only(old.lora, new.lora) and new.model_copy(update={"lora": old.lora}) == old


FAMILY = Family(
    name="llm/transformers",
    summary="Any decoder of transformers, batched in flight on a paged key/value cache.",
    operations=frozenset({"chat", "complete"}),
    loader="sixfold.plugins.llm.loader:load",
    rank_loader="sixfold.plugins.llm.rank_loader:load_rank",
    parallel=memory_need.parallel_shape,
    input_type=ChatInput | CompletionInput,
    output_type=TextDelta | Generation,
    options=TransformersOptions,
    trace_names=_TRACE_NAMES,
    extra="llm",
    requires=("torch", "transformers", "jinja2", "safetensors", "llguidance", "PIL"),
    detect=detect,
    memory=memory_need.need,
    metrics=(
        MetricSpec(name="prompt_tokens_total", kind=MetricKind.COUNTER, help="Prompt tokens computed."),
        MetricSpec(name="generation_tokens_total", kind=MetricKind.COUNTER, help="Tokens generated."),
        MetricSpec(
            name="kv_cache_usage_perc",
            kind=MetricKind.GAUGE,
            help="Share of cache blocks in use, 0 to 1.",
            is_held=True,
        ),
        MetricSpec(
            name="kv_blocks_used", kind=MetricKind.GAUGE, help="Cache blocks that sequences hold.", is_held=True
        ),
        MetricSpec(name="kv_blocks_total", kind=MetricKind.GAUGE, help="Cache blocks that sequences can hold in all."),
        MetricSpec(
            name="prefix_cache_queries_total", kind=MetricKind.COUNTER, help="Tokens that were looked for in the cache."
        ),
        MetricSpec(name="prefix_cache_hits_total", kind=MetricKind.COUNTER, help="Tokens that were found there."),
        MetricSpec(name="kv_offload_blocks_used", kind=MetricKind.GAUGE, help="Cached blocks kept in host memory."),
        MetricSpec(
            name="kv_offload_blocks_total", kind=MetricKind.GAUGE, help="Blocks that host memory is set to keep."
        ),
        MetricSpec(
            name="kv_offload_restored_blocks_total", kind=MetricKind.COUNTER, help="Blocks that came back from there."
        ),
        MetricSpec(
            name="kv_offload_dropped_blocks_total",
            kind=MetricKind.COUNTER,
            help="Cached blocks lost since computing them again is faster than copying them.",
        ),
        MetricSpec(name="spec_decode_num_drafts_total", kind=MetricKind.COUNTER, help="Runs of tokens guessed ahead."),
        MetricSpec(name="spec_decode_num_draft_tokens_total", kind=MetricKind.COUNTER, help="Tokens guessed ahead."),
        MetricSpec(
            name="spec_decode_num_accepted_tokens_total",
            kind=MetricKind.COUNTER,
            help="Guessed tokens that were right.",
        ),
        MetricSpec(name="lora_adapters_loaded", kind=MetricKind.GAUGE, help="LoRA adapters in memory."),
        MetricSpec(
            name="images_encoded_total", kind=MetricKind.COUNTER, help="Images that the vision tower looked at."
        ),
        MetricSpec(name="image_forwards_total", kind=MetricKind.COUNTER, help="Forward passes of the vision tower."),
        MetricSpec(
            name="kv_transfer_exports_total", kind=MetricKind.COUNTER, help="Prompts offered to other processes."
        ),
        MetricSpec(name="kv_transfer_imports_total", kind=MetricKind.COUNTER, help="Prompts fetched from others."),
        MetricSpec(name="kv_transfer_imported_tokens_total", kind=MetricKind.COUNTER, help="Their tokens that came."),
        MetricSpec(
            name="kv_transfer_failures_total", kind=MetricKind.COUNTER, help="Prompts computed since fetching failed."
        ),
        MetricSpec(
            name="kv_transfer_held_blocks", kind=MetricKind.GAUGE, help="Cache blocks kept for other processes."
        ),
    ),
    quantization=LINEAR_METHODS | CACHE_METHODS,
    quality="sixfold.plugins.llm.quality:DecoderQuality",
    variants=lambda options: adapter_names(options.lora),
    adjusts=_adjusts,
    # A few minutes of work for a small model on two cores.
    default_max_queue_units=131_072,
)


VLLM_FAMILY = Family(
    name="llm/vllm",
    summary="What vLLM runs, on GPUs, behind the same API as the native runtime.",
    operations=frozenset({"chat", "complete"}),
    loader="sixfold.plugins.llm.vllm_loader:load",
    input_type=ChatInput | CompletionInput,
    output_type=TextDelta | Generation,
    options=VllmOptions,
    trace_names=_TRACE_NAMES,
    extra="vllm",
    requires=("vllm", "transformers", "jinja2"),
    # Below the native runtime, which serves an entry that names no family wherever it is installed.
    detect=lambda files: detect(files) // 2,
    memory=memory_need.vllm_need,
    metrics=VLLM_METRICS,
    variants=lambda options: adapter_names(options.lora),
    adjusts=_adjusts,
    # A minute of prompts for a small model on one GPU.
    default_max_queue_units=8_388_608,
)


@hookimpl
def register_families(register: Callable[[Family], None]) -> None:
    """Offers the native runtime and vLLM."""
    register(FAMILY)
    register(VLLM_FAMILY)


@hookimpl
def register_apis(register: Callable[[Api], None]) -> None:
    """Offers ``/v1/chat/completions``, ``/v1/completions`` and ``/v1/responses``."""
    register(
        Api(
            modality="llm",
            factory="sixfold.plugins.llm.api:LlmAPI",
            examples={
                "chat": "curl $url/v1/chat/completions -H 'content-type: application/json' "
                """-d '{"model": "$model", "max_tokens": 100, "messages": """
                """[{"role": "user", "content": "Name the capital of France."}]}'\n\n"""
                "sixfold chat --url $url --model $model --max-tokens 100 'Write one sentence about the sea.'",
            },
            probes=PROBES,
        )
    )


@hookimpl
def register_commands(register: Callable[[Command], None]) -> None:
    """Offers ``sixfold chat``."""
    register(COMMAND)


@hookimpl
def register_workloads(register: Callable[[Workload], None]) -> None:
    """Offers chats and completions to ``sixfold bench``."""
    for workload in WORKLOADS:
        register(workload)


@hookimpl
def convert_model(files: ModelFiles, cache_dir: Path, progress: Progress) -> Path | None:
    """Converts the GGUF file of a decoder."""
    from sixfold.plugins.llm.gguf import convert_gguf, find_gguf

    source = find_gguf(files)
    return None if source is None else convert_gguf(source, cache_dir, progress)
