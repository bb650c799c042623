"""Loads a model folder into the native runtime. Imported in the worker process only."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import AttentionInterface
from transformers.utils import logging as transformers_logging

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ConfigError, SourceError
from sixfold.core.family import LoadContext
from sixfold.core.runtime.linear import PackedLinear
from sixfold.core.runtime.step_linear import StepGatedLinear
from sixfold.plugins.llm.answer_style import AnswerStyle
from sixfold.plugins.llm.attention import ATTENTION, paged_attention
from sixfold.plugins.llm.conversation import ConversationWriter
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.facts import ModelFacts, read_facts
from sixfold.plugins.llm.fuse import optimize
from sixfold.plugins.llm.grammar import GrammarCompiler
from sixfold.plugins.llm.grammar_masks import GrammarMasks
from sixfold.plugins.llm.kv_cache import KvCache, LayerShape
from sixfold.plugins.llm.memory import default_kv_cache_bytes
from sixfold.plugins.llm.model import TransformersModel
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.prepare import Preparer
from sixfold.plugins.llm.probe import PROBE_ATTENTION, OtherLogits, check_agreement, probe_layers, record_attention
from sixfold.plugins.llm.tensors import int_list
from sixfold.plugins.llm.text_codec import TextCodec

_LOG = logging.getLogger(__name__)

# A first chunk, one that finds cached tokens, and a single step: every path of the attention function.
_CHECK_CHUNKS = (14, 9, 1)


# These are typed in part; their types are what this project says.
_ATTENTION_TABLE: Any = AttentionInterface
_CONFIGS: Any = AutoConfig
_MODELS: Any = AutoModelForCausalLM
_TRANSFORMERS_LOGGING: Any = transformers_logging


def load(context: LoadContext) -> TransformersModel:
    """Loads, optimizes and checks a decoder.

    Raises:
        ConfigError: The model or an option does not fit the native runtime; says why.
        SourceError: The folder's files are not a loadable model.
    """
    options = context.options
    assert isinstance(options, TransformersOptions)
    torch.set_num_threads(context.num_threads)
    _TRANSFORMERS_LOGGING.disable_progress_bar()
    _ATTENTION_TABLE.register(ATTENTION, paged_attention)
    _ATTENTION_TABLE.register(PROBE_ATTENTION, record_attention)
    device = torch.device(context.device)
    dtype = choose_dtype(options.dtype, device)
    context.report(0.05, "reading the tokenizer")
    codec: TextCodec = _from_files(lambda: TextCodec.load(context.path), "tokenizer")
    context.report(0.2, "reading weights")
    model = _from_files(lambda: _read_model(context.path, dtype, device), "weights")
    facts = read_facts(context.path, model, codec)
    num_parameters = sum(p.numel() for p in model.parameters())
    context.report(0.6, "packing weights")
    try:
        decoder = _to_paged(model, facts, options, context.model_name, fuse=options.compute_packed)
    except OtherLogits as error:
        if not options.compute_packed:
            raise
        _LOG.warning("%s Its layers are not fused.", error)
        model = _from_files(lambda: _read_model(context.path, dtype, device), "weights")
        decoder = _to_paged(model, facts, options, context.model_name, fuse=False)
    max_model_len = _max_model_len(facts, options, decoder.cache, context.model_name)
    style = AnswerStyle.of(
        codec.template, tool_call_parser=options.tool_call_parser, reasoning_parser=options.reasoning_parser
    )
    info = ModelInfo(
        max_model_len=max_model_len,
        parameters=num_parameters,
        memory_bytes=_weight_bytes(model) + decoder.cache.num_bytes,
        details={
            "dtype": str(dtype).removeprefix("torch."),
            "kv_cache_tokens": decoder.cache.num_tokens,
            "vocab_size": facts.vocab_size,
            "has_chat_template": codec.has_chat_template,
            **style.details,
        },
    )
    grammars = GrammarCompiler(codec, vocab_size=facts.vocab_size, eos_ids=facts.eos_ids)
    preparer = Preparer(
        codec=codec,
        conversations=ConversationWriter(codec, style, grammars),
        defaults=facts.defaults,
        eos_ids=facts.eos_ids,
        vocab_size=facts.vocab_size,
        max_model_len=max_model_len,
    )
    masks = GrammarMasks(vocab_size=facts.vocab_size, num_mask_tokens=max(facts.vocab_size, codec.num_tokens))
    return TransformersModel(decoder=decoder, preparer=preparer, codec=codec, info=info, masks=masks)


def _to_paged(model: Any, facts: ModelFacts, options: TransformersOptions, model_name: str, *, fuse: bool) -> Decoder:
    """Moves a stock model onto the paged cache and proves that it still computes the same."""
    device, dtype = model.device, model.dtype
    tokens = _check_tokens(facts.vocab_size)
    with torch.inference_mode():
        reference: Tensor = model(input_ids=torch.tensor([tokens], device=device), use_cache=False).logits[0, -1]
    model.set_attn_implementation(PROBE_ATTENTION)
    layers = probe_layers(model, num_layers=facts.num_layers, model_name=model_name)
    if options.compute_packed:
        optimize(model, fuse=fuse)
    model.set_attn_implementation(ATTENTION)
    decoder = Decoder(model, _make_cache(layers, options, dtype=dtype, device=device))
    logits = decoder.run([tokens], _CHECK_CHUNKS)
    if logits is None:
        raise ConfigError(
            f"models.{model_name}.options.kv_cache_bytes: room for {decoder.cache.num_tokens} tokens is too little. "
            f"Set at least {sum(_CHECK_CHUNKS) * decoder.cache.num_bytes // decoder.cache.num_tokens}."
        )
    check_agreement(reference, logits[0], dtype=dtype, model_name=model_name, class_name=type(model).__name__)
    return decoder


def choose_dtype(option: str, device: torch.device) -> torch.dtype:
    """The type for weights and cache; ``auto`` takes bfloat16 only where the hardware multiplies it."""
    if option != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[option]
    if device.type == "cpu":
        cpu: Any = torch.cpu  # the questions are private, and asked by torch's own compiler
        native = bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    else:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def _from_files(read: Callable[[], Any], what: str) -> Any:
    try:
        return read()
    except (OSError, ValueError, KeyError, ImportError) as error:  # what transformers raises for bad folders
        raise SourceError(
            f"The model's {what} can't be read: {error}. Pull the model again or choose another."
        ) from error


def _read_model(path: Path, dtype: torch.dtype, device: torch.device) -> Any:
    config = _CONFIGS.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    model = _MODELS.from_pretrained(path, config=config, dtype=dtype, local_files_only=True, trust_remote_code=False)
    return model.to(device).eval()


def _weight_bytes(model: nn.Module) -> int:
    linears = [m for m in model.modules() if isinstance(m, PackedLinear | StepGatedLinear)]
    packed = [linear.num_bytes for linear in linears if linear.is_packed]
    return sum(p.nbytes for p in model.parameters()) + sum(packed)


def _check_tokens(vocab_size: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return int_list(torch.randint(0, vocab_size, (sum(_CHECK_CHUNKS),), generator=generator))


def _make_cache(
    layers: tuple[LayerShape, ...], options: TransformersOptions, *, dtype: torch.dtype, device: torch.device
) -> KvCache:
    num_bytes = options.kv_cache_bytes or default_kv_cache_bytes(device)
    block_bytes = options.block_size_tokens * sum(layer.token_bytes(dtype) for layer in layers)
    return KvCache(
        layers,
        num_blocks=max(num_bytes // block_bytes, 2),
        block_size=options.block_size_tokens,
        dtype=dtype,
        device=device,
    )


def _max_model_len(facts: ModelFacts, options: TransformersOptions, cache: KvCache, model_name: str) -> int:
    wanted = options.max_model_len
    if wanted is not None and wanted > facts.max_model_len:
        raise ConfigError(
            f"models.{model_name}.options.max_model_len: {wanted} exceeds the model's own limit of {facts.max_model_len}."
        )
    if wanted is not None and wanted > cache.num_tokens:
        token_bytes = math.ceil(cache.num_bytes / cache.num_tokens)
        raise ConfigError(
            f"models.{model_name}.options.max_model_len: {wanted} tokens do not fit the cache of {cache.num_tokens}. "
            f"Set options.kv_cache_bytes to at least {wanted * token_bytes}."
        )
    return min(wanted or facts.max_model_len, cache.num_tokens)
