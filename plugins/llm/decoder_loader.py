"""Loads the weights of one decoder onto a paged cache. Imported in the worker process only."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface
from transformers.utils import logging as transformers_logging

from sixfold.core.errors import ConfigError
from sixfold.core.runtime.linear import PackedLinear
from sixfold.core.runtime.quantization.modules import held_bytes
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.step_linear import StepGatedLinear
from sixfold.plugins.llm.attention import ATTENTION, paged_attention
from sixfold.plugins.llm.cache_policy import CacheScheme, split
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.facts import ModelFacts, read_facts
from sixfold.plugins.llm.fuse import adapt
from sixfold.plugins.llm.image_processor import ImageProcessor
from sixfold.plugins.llm.kv_cache import KvCache, LayerShape
from sixfold.plugins.llm.lora_linears import linear_shapes
from sixfold.plugins.llm.memory import default_kv_cache_bytes
from sixfold.plugins.llm.optimization import Passes, decoder_of
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.probe import PROBE_ATTENTION, OtherLogits, check_agreement, probe_layers, record_attention
from sixfold.plugins.llm.stock_model import choose_dtype, read_files, read_model, set_attention
from sixfold.plugins.llm.tensors import int_list
from sixfold.plugins.llm.text_codec import TextCodec
from sixfold.plugins.llm.vision import ImageEncoder
from sixfold.plugins.llm.vision_check import VisionCheck
from sixfold.plugins.llm.vision_loader import LoadedVision, load_image_processor

_LOG = logging.getLogger(__name__)

# A first chunk, one that finds cached tokens, and a single step: every path of the attention function.
_CHECK_CHUNKS = (14, 9, 1)

# These are typed in part; their types are what this project says.
_ATTENTION_TABLE: Any = AttentionInterface
_TRANSFORMERS_LOGGING: Any = transformers_logging


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDecoder:
    """A decoder that computes what the stock model does.

    Attributes:
        decoder: On its cache.
        facts: What its files say.
        num_parameters: Number of weights.
        num_bytes: Of weights and cache.
        quantization: What is quantized, in a few words; empty for nothing.
        vision: How it reads images; None if it does not.
    """

    decoder: Decoder
    facts: ModelFacts
    num_parameters: int
    num_bytes: int
    quantization: str
    vision: LoadedVision | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderUse:
    """What a decoder is loaded for.

    Attributes:
        num_blocks: Of its cache; by the options if None.
        quantization: Which layers are kept in fewer bits, and whether the cache is.
        reads_images: Whether images are wanted of a model that can read them.
        may_adapt: Whether it can have adapters.
        fuses: Whether whole layers may be replaced by kernels; not where other ranks compute along.
        guessing_layers: Layers of its cache beyond its own; see `KvCache`.
    """

    num_blocks: int | None = None
    quantization: QuantizationPolicy | None = None
    reads_images: bool = False
    may_adapt: bool = False
    fuses: bool = True
    guessing_layers: tuple[LayerShape, ...] = ()


def load_decoder(
    path: Path,
    codec: TextCodec,
    options: TransformersOptions,
    use: DecoderUse,
    *,
    device: torch.device,
    model_name: str,
    report: Callable[[float, str], None],
) -> LoadedDecoder:
    """Loads, optimizes and checks a decoder.

    Args:
        path: Its folder.
        codec: Its tokenizer.
        options: Of the model.
        use: What for.
        device: Where it goes.
        model_name: For messages.
        report: See `LoadContext`.

    Raises:
        ConfigError: The model or an option does not fit the native runtime; says why.
        SourceError: The folder's files are not a loadable model.
    """
    _TRANSFORMERS_LOGGING.disable_progress_bar()
    _ATTENTION_TABLE.register(ATTENTION, paged_attention)
    _ATTENTION_TABLE.register(PROBE_ATTENTION, record_attention)
    dtype = choose_dtype(options.dtype, device)
    policy = split(use.quantization, place=f"models.{model_name}.quantization")
    report(0.2, "reading weights")
    read = functools.partial(read_files, lambda: read_model(path, dtype, device), "weights")
    model = read()
    facts = read_facts(path, model, codec)
    processor = load_image_processor(path, model, model_name) if use.reads_images else None
    num_parameters = sum(p.numel() for p in model.parameters())
    report(0.6, "packing weights")
    passes = Passes(quantization=policy.weights, model_name=model_name, fuse=options.compute_packed and use.fuses)
    to_paged = functools.partial(
        _to_paged, facts=facts, options=options, use=use, processor=processor, cache_scheme=policy.scheme
    )
    try:
        decoder, quantized = to_paged(model, passes=passes)
    except OtherLogits as error:
        if not options.compute_packed:
            raise
        _LOG.warning("%s Its layers are not fused.", error)
        model = read()
        decoder, quantized = to_paged(model, passes=dataclasses.replace(passes, fuse=False))
    return LoadedDecoder(
        decoder=decoder,
        facts=facts,
        num_parameters=num_parameters,
        num_bytes=_weight_bytes(model) + decoder.cache.num_bytes,
        quantization=quantized,
        vision=None if processor is None else LoadedVision.of_model(model, processor, device),
    )


def _to_paged(
    model: Any,
    *,
    facts: ModelFacts,
    options: TransformersOptions,
    use: DecoderUse,
    passes: Passes,
    processor: ImageProcessor | None,
    cache_scheme: CacheScheme | None,
) -> tuple[Decoder, str]:
    """Moves a stock model onto the paged cache and proves that it still computes the same; says what is quantized."""
    device, dtype, model_name = model.device, model.dtype, passes.model_name
    tokens = _check_tokens(facts.vocab_size)
    with torch.inference_mode():
        reference: Tensor = model(input_ids=torch.tensor([tokens], device=device), use_cache=False).logits[0, -1]
    check = None
    if processor is not None:
        check = VisionCheck.of_stock(model, processor, tokens, model.config.image_token_id)
    set_attention(model, PROBE_ATTENTION)
    layers = probe_layers(model, num_layers=facts.num_layers, model_name=model_name)
    stepped = decoder_of(model)
    shapes = linear_shapes(model, stepped)
    quantized = passes.run(model, stepped, packed=options.compute_packed)
    set_attention(model, ATTENTION)
    cache = _make_cache(layers, options, use, dtype=dtype, scheme=cache_scheme, device=device)
    router = adapt(model, shapes, device) if use.may_adapt else None
    decoder = Decoder(model, cache, graph_rows=options.cuda_graph_rows, router=router)
    logits = decoder.run([tokens], _CHECK_CHUNKS)
    if logits is None:
        raise ConfigError(
            f"models.{model_name}.options.kv_cache_bytes: room for {decoder.cache.num_tokens} tokens is too little. "
            f"Set at least {sum(_CHECK_CHUNKS) * decoder.cache.num_bytes // decoder.cache.num_tokens}."
        )
    names = {"model_name": model_name, "class_name": type(model).__name__}
    is_quantized = passes.quantization is not None or cache_scheme is not None
    check_agreement(reference, logits[0], dtype=dtype, quantized=is_quantized, **names)
    if check is not None:
        seen = check.answer(decoder, ImageEncoder(model, device), model_name=model_name)
        check_agreement(check.logits, seen, dtype=dtype, quantized=is_quantized, **names)
    cached = "" if cache_scheme is None else f"{cache_scheme} kv_cache"
    return decoder, ", ".join(filter(None, (quantized, cached)))


def _weight_bytes(model: nn.Module) -> int:
    linears = [m for m in model.modules() if isinstance(m, PackedLinear | StepGatedLinear)]
    packed = [linear.num_bytes for linear in linears if linear.is_packed]
    return held_bytes(model) + sum(packed)


def _check_tokens(vocab_size: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return int_list(torch.randint(0, vocab_size, (sum(_CHECK_CHUNKS),), generator=generator))


def _make_cache(
    model_layers: tuple[LayerShape, ...],
    options: TransformersOptions,
    use: DecoderUse,
    *,
    dtype: torch.dtype,
    scheme: CacheScheme | None,
    device: torch.device,
) -> KvCache:
    layers, num_blocks = model_layers + use.guessing_layers, use.num_blocks
    if num_blocks is None:
        num_bytes = options.kv_cache_bytes or default_kv_cache_bytes(device)
        block_bytes = sum(layer.block_bytes(options.block_size_tokens, dtype, scheme) for layer in layers)
        num_blocks = max(num_bytes // block_bytes, 2)
    return KvCache(
        layers,
        num_blocks=num_blocks,
        block_size=options.block_size_tokens,
        dtype=dtype,
        device=device,
        scheme=scheme,
        num_guessing_layers=len(use.guessing_layers),
    )
