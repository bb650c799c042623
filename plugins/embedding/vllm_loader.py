"""Starts vLLM for an embedder's folder and reads from its files what sentence-transformers would. Worker process only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ConfigError, SourceError
from sixfold.core.family import LoadContext, ModelFiles
from sixfold.core.validation import did_you_mean
from sixfold.plugins.embedding.tokenizing import Prompts, TextTokenizer
from sixfold.plugins.embedding.vllm_model import VllmEmbeddingModel
from sixfold.plugins.embedding.vllm_options import VllmEmbeddingOptions

_SAME = ("dtype", "gpu_memory_utilization", "tensor_parallel_size", "max_num_batched_tokens", "enforce_eager")
_OWN = frozenset("model tokenizer runner convert max_model_len kv_cache_memory_bytes trust_remote_code".split())


def load(context: LoadContext) -> VllmEmbeddingModel:
    """Starts the engine.

    Raises:
        ConfigError: vLLM can't run the model as it is configured; says why.
        SourceError: The folder is no text embedder that vLLM pools by itself.
    """
    options = context.options
    assert isinstance(options, VllmEmbeddingOptions)
    files = ModelFiles(context.path)
    refuse_unpooled_prompts(files)
    normalizes = normalizes_vectors(files)
    prompts = read_prompts(files, options.default_prompt_name)
    context.report(0.02, "importing vLLM")
    from sixfold.plugins.embedding import vllm_engine

    arguments = engine_arguments(options, context.path, vllm_engine.ENGINE_ARGUMENTS, context.model_name)
    context.report(0.15, "starting vLLM")
    try:
        engine = vllm_engine.VllmEmbedder(arguments, normalizes=normalizes)
    except (ValueError, TypeError, NotImplementedError) as error:  # how vLLM refuses a configuration
        raise ConfigError(f"models.{context.model_name}: vLLM refuses the model or its options: {error}") from error
    tokenizer = read_tokenizer(
        files, options.max_seq_length, max_model_len=engine.max_model_len, vocabulary_size=engine.vocab_size
    )
    details: dict[str, str | int | float | bool] = {
        "dimension": engine.dimension,
        "dtype": engine.dtype,
        "execution": f"vllm {vllm_engine.engine_version()}",
        "max_inputs": options.max_inputs,
        "normalized": normalizes,
        "output_types": "dense",
        "prompts": ",".join(prompts.texts),
        "reranks": False,
        "similarity": str(files.json("config_sentence_transformers.json").get("similarity_fn_name") or "cosine"),
    }
    return VllmEmbeddingModel(
        engine=engine,
        info=ModelInfo(max_model_len=tokenizer.max_tokens, details=details),
        tokenizer=tokenizer,
        prompts=prompts,
        max_inputs=options.max_inputs,
        dimension=engine.dimension,
        normalizes=normalizes,
        # Requests of one text each must fill the step, and the next one must be at hand.
        max_running_requests=2 * engine.max_num_seqs,
    )


def engine_arguments(
    options: VllmEmbeddingOptions, path: Path, known: Iterable[str], model_name: str
) -> dict[str, Any]:
    """The keyword arguments of ``AsyncEngineArgs``.

    Raises:
        ConfigError: ``engine_args`` has a name that vLLM does not know or that the family sets itself.
    """
    free = frozenset(known) - _OWN - frozenset(_SAME)
    for name in options.engine_args:
        if name not in free:
            place = f"models.{model_name}.options.engine_args.{name}"
            reason = "is set by the family or an option" if name in known else "is no argument of this vLLM"
            raise ConfigError(f"{place}: {reason}. {did_you_mean(name, free)}")
    arguments: dict[str, Any] = {
        "model": str(path),
        "runner": "pooling",
        "convert": "embed",
        "disable_log_stats": True,
        "kv_cache_memory_bytes": options.kv_cache_bytes,
    }
    arguments |= {name: getattr(options, name) for name in _SAME}
    return {name: value for name, value in arguments.items() if value is not None} | options.engine_args


def normalizes_vectors(files: ModelFiles) -> bool:
    """Whether vectors get length 1: by the folder's modules; a folder without any is taken for one that does."""
    modules = _modules(files)
    return not modules or any(kind.endswith(".Normalize") for kind, _ in modules)


def refuse_unpooled_prompts(files: ModelFiles) -> None:
    """vLLM pools all tokens.

    Raises:
        SourceError: The model leaves its prompt's tokens out.
    """
    for kind, folder in _modules(files):
        if kind.endswith(".Pooling") and files.json(f"{folder}/config.json").get("include_prompt") is False:
            raise SourceError("The model does not pool its prompt's tokens, but vLLM does. Use the native family.")


def read_prompts(files: ModelFiles, default_name: str | None) -> Prompts:
    """The model's prompts; the operator's default name, if any, goes before the model's.

    Raises:
        ConfigError: The model has no prompt of this name.
    """
    own = files.json("config_sentence_transformers.json")
    declared = cast("dict[str, object]", own.get("prompts") or {})
    texts = {name: text for name, text in declared.items() if isinstance(text, str)}
    if default_name is not None and default_name not in texts:
        known = ", ".join(map(repr, texts)) or "none"
        raise ConfigError(f"options.default_prompt_name is {default_name!r}; the model has: {known}.")
    return Prompts(texts=texts, default_name=default_name or own.get("default_prompt_name"))


def read_tokenizer(
    files: ModelFiles, max_seq_length: int | None, *, max_model_len: int, vocabulary_size: int
) -> TextTokenizer:
    """The model's tokenizer with its limits.

    Raises:
        ConfigError: The operator's limit is above the model's.
        SourceError: The model has no fast tokenizer.
    """
    if not files.has("tokenizer.json"):
        raise SourceError("The model has no tokenizer.json; only fast tokenizers are supported.")
    inner = Tokenizer.from_file(str(files.path / "tokenizer.json"))
    inner.no_padding()
    inner.no_truncation()
    declared = files.json("sentence_bert_config.json").get("max_seq_length")
    longest = min(max_model_len, int(declared or max_model_len))
    if max_seq_length is not None and max_seq_length > longest:
        raise ConfigError(f"options.max_seq_length is {max_seq_length}; the model takes at most {longest} tokens.")
    return TextTokenizer(
        inner,
        vocabulary_size=vocabulary_size,
        max_tokens=max_seq_length or longest,
        truncation_side=str(files.json("tokenizer_config.json").get("truncation_side") or "right"),
    )


def _modules(files: ModelFiles) -> list[tuple[str, str]]:
    """Type and folder of each of the folder's sentence-transformers modules."""
    if not files.has("modules.json"):
        return []
    rows = cast("list[dict[str, str]]", json.loads((files.path / "modules.json").read_text(encoding="utf-8")))
    return [(row["type"], row.get("path", "")) for row in rows]
