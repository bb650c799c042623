"""Starts vLLM for a model folder. Imported in the worker process only."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ConfigError, SourceError
from sixfold.core.family import LoadContext, ModelFiles
from sixfold.plugins.llm.conversation import ConversationWriter
from sixfold.plugins.llm.lora_options import lora_details
from sixfold.plugins.llm.prefix_sharing import PrefixSharing
from sixfold.plugins.llm.prepare import Preparer
from sixfold.plugins.llm.sampling import SamplingDefaults
from sixfold.plugins.llm.text_codec import TextCodec
from sixfold.plugins.llm.vllm_arguments import engine_arguments
from sixfold.plugins.llm.vllm_metrics import EngineCounts
from sixfold.plugins.llm.vllm_model import VllmModel
from sixfold.plugins.llm.vllm_options import VllmOptions
from sixfold.plugins.llm.vllm_sleep import Wakefulness

if TYPE_CHECKING:
    from sixfold.plugins.llm.vllm_engine import VllmEngine  # imports vLLM

_DEFAULT_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def load(context: LoadContext) -> VllmModel:
    """Starts the engine.

    Raises:
        ConfigError: vLLM can't run the model as it is configured; says why.
        SourceError: The folder's files are no loadable model.
    """
    options = context.options
    assert isinstance(options, VllmOptions)
    context.report(0.02, "importing vLLM")
    from sixfold.plugins.llm import vllm_engine

    context.report(0.1, "reading the tokenizer")
    codec = _read_tokenizer(context.path)
    arguments = engine_arguments(
        options, context.path, known=vllm_engine.ENGINE_ARGUMENTS, model_name=context.model_name
    )
    counts = EngineCounts()
    context.report(0.15, "starting vLLM")
    try:
        engine = vllm_engine.VllmEngine(arguments, counts)
    except (ValueError, TypeError, NotImplementedError) as error:  # how vLLM refuses a configuration
        raise ConfigError(f"models.{context.model_name}: vLLM refuses the model or its options: {error}") from error
    model = _model(context.path, options, codec, engine, counts)
    try:
        model.adjust(options)
    except ConfigError as error:
        model.close()
        raise ConfigError(f"models.{context.model_name}.options.lora: {error}") from error
    return model


def _model(path: Path, options: VllmOptions, codec: TextCodec, engine: VllmEngine, counts: EngineCounts) -> VllmModel:
    """The family's model over a started engine."""
    num_tokens = engine.num_blocks * engine.block_size
    defaults, eos_ids = read_defaults(path, codec)
    conversations = ConversationWriter.of_model(
        codec,
        tool_call_parser=options.tool_call_parser,
        reasoning_parser=options.reasoning_parser,
        vocab_size=engine.vocab_size,
        eos_ids=eos_ids,
    )
    info = ModelInfo(
        max_model_len=engine.max_model_len,
        details={
            "engine": f"vllm {engine_version()}",
            "dtype": engine.dtype,
            "kv_cache_tokens": num_tokens,
            "kv_blocks_total": engine.num_blocks,
            "vocab_size": engine.vocab_size,
            "has_chat_template": codec.has_chat_template,
            **conversations.details,
            **lora_details(options.lora),
        },
    )
    return VllmModel(
        engine=engine,
        preparer=Preparer(
            codec=codec,
            conversations=conversations,
            defaults=defaults,
            eos_ids=eos_ids,
            vocab_size=engine.vocab_size,
            max_model_len=engine.max_model_len,
            # vLLM hashes blocks itself: no prompt is as long as one of these.
            prefix=PrefixSharing(mode=options.prefix_cache, block_size=engine.max_model_len + 1),
        ),
        conversations=conversations,
        codec=codec,
        counts=counts,
        info=info,
        # A place that becomes free in a step is taken in the next: so a few more than fit are kept at hand.
        max_running_requests=engine.max_num_seqs + max(8, engine.max_num_seqs // 8),
        # Twice what the cache holds: the core counts whole answers in advance, and most end earlier.
        max_running_units=max(2 * num_tokens, engine.max_model_len),
        wakefulness=None
        if options.sleep_after_s is None
        else Wakefulness(sleep=engine.sleep, wake_up=engine.wake_up, after_s=options.sleep_after_s),
    )


def read_defaults(path: Path, codec: TextCodec) -> tuple[SamplingDefaults, tuple[int, ...]]:
    """The model's sampling defaults and end tokens, from its files alone."""
    files = ModelFiles(path)
    config, generation = files.json("config.json"), files.json("generation_config.json")
    text_config = cast("dict[str, Any]", config.get("text_config") or config)
    declared = generation.get("eos_token_id", text_config.get("eos_token_id"))
    ends: list[int | None] = cast("list[int | None]", declared) if isinstance(declared, list) else [declared]
    defaults = SamplingDefaults(**{n: generation[n] for n in _DEFAULT_NAMES if generation.get(n) is not None})
    return defaults, tuple(sorted({int(i) for i in (*ends, codec.eos_id) if i is not None}))


def engine_version() -> str:
    """The installed vLLM's version, under whichever name it was published."""
    for name in importlib.metadata.packages_distributions().get("vllm", ()):
        return importlib.metadata.version(name)
    return "unknown"


def _read_tokenizer(path: Path) -> TextCodec:
    try:
        return TextCodec.load(path)
    except (OSError, ValueError, KeyError, ImportError) as error:  # what transformers raises for bad folders
        raise SourceError(f"The model's tokenizer can't be read: {error}. Pull the model again.") from error
