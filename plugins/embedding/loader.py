"""Loads a sentence-transformers folder and finds by trial the fastest way to run it that equals the library."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import SourceError
from sixfold.core.family import LoadContext, ModelFiles
from sixfold.core.parallel.modules import RankModule
from sixfold.core.runtime.cuda_graphs import has_kernels
from sixfold.core.runtime.linear import pack_linears
from sixfold.core.runtime.quantization.component import Component
from sixfold.core.runtime.quantization.methods import LINEAR_METHODS
from sixfold.core.runtime.quantization.modules import held_bytes, quantize_loaded
from sixfold.core.runtime.quantization.policy import QuantizationPolicy, patterns
from sixfold.plugins.embedding.attention import PackedAttention
from sixfold.plugins.embedding.encoder import Encoder, EncoderInput
from sixfold.plugins.embedding.forward import Forward, GroupedForward, PackedForward
from sixfold.plugins.embedding.fused import fuse_layers
from sixfold.plugins.embedding.model import EmbeddingModel
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.outputs.pipelines import MultiVectorPipeline, SparsePipeline
from sixfold.plugins.embedding.pipeline import Pipeline
from sixfold.plugins.embedding.ranks import MODULE, check_degrees, divide_documents, rank_module
from sixfold.plugins.embedding.tokenizing import TextTokenizer

_LOG = logging.getLogger(__name__)

QUANTIZATION_SKIP = patterns("pooler")
"""Linear layers that keep their type unless an entry says otherwise."""

MODES = ("fused", "packed", "grouped", "stock")
"""From the fastest to the one that can't fail; "stock" is "grouped" with the library's own linear layers."""

# In bfloat16 both sides are rounded, by other kernels: 1 - 2e-4 is usual. A sequence that sees another's tokens is
# off by far more than either bound.
_MAX_LOSS = {torch.float32: 1e-5, torch.bfloat16: 2e-3}
_ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}  # the library rounds the finished vector too

# A strange model's own code may fail in any of these ways when it is run in a way that it was not made for.
_TRIAL_ERRORS = (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)

_CHECK_WORDS = "the patient has no known allergy to penicillin and 12 mg were given at night ; see page 4".split() * 40
_CHECK_NUM_WORDS = (1, 3, 3, 9, 10, 11, 40, 42, 90, 91, 300)


def load(context: LoadContext) -> EmbeddingModel:
    """The family's loader; runs in the worker process.

    Raises:
        SourceError: The folder is no text embedding model, or needs code of its own.
        ConfigError: An option does not fit the model.
    """
    options = context.options
    assert isinstance(options, EmbeddingOptions)
    torch.set_num_threads(context.num_threads)
    check_degrees(context)
    context.report(0.1, "reading weights")
    pipeline, quantized = read_pipeline(context, context.quantization)
    dtype = pipeline.dtype
    weight_bytes = pipeline.num_parameters * dtype.itemsize if not quantized else held_bytes(pipeline.transformer)
    tokenizer = pipeline.tokenizer(options.max_seq_length)
    prompts = pipeline.prompts(options.default_prompt_name)
    context.report(0.5, "checking the vectors against the library's")
    encoder = build_checked(pipeline, tokenizer, context.model_name)
    if context.parallel is not None:
        divide_documents(context, context.parallel, encoder, pipeline, tokenizer)
    details: dict[str, str | int | float | bool] = {
        "dimension": encoder.dimension,
        "dtype": str(dtype).removeprefix("torch."),
        "execution": encoder.mode,
        "max_inputs": options.max_inputs,
        "normalized": encoder.normalizes,
        "output_types": ",".join(encoder.output_types),
        "prompts": ",".join(prompts.texts),
        # Late interaction is made for it.
        "reranks": options.rerank_by_similarity or encoder.output_types == ("multi_vector",),
        "similarity": pipeline.similarity,
        **({"quantization": quantized} if quantized else {}),
    }
    context.report(1.0, f"runs {encoder.mode}")
    return EmbeddingModel(
        info=ModelInfo(
            max_model_len=tokenizer.max_tokens,
            parameters=pipeline.num_parameters,
            memory_bytes=weight_bytes,
            details=details,
        ),
        encoder=encoder,
        tokenizer=tokenizer,
        prompts=prompts,
        max_inputs=options.max_inputs,
        num_threads=context.num_threads,
        parts_pay=context.device == "cpu" and encoder.mode == "fused" and context.parallel is None,
        flies=context.device != "cpu",
        graph_tokens=options.cuda_graph_tokens,
        similarity=pipeline.similarity,
    )


def load_rank(context: LoadContext) -> Mapping[str, RankModule]:
    """The family's `Family.rank_loader`: the model in the way in which the first rank has it.

    Raises:
        SourceError: The folder is no text embedding model, or needs code of its own.
        ConfigError: The model can't be divided.
    """
    options = context.options
    assert isinstance(options, EmbeddingOptions)
    torch.set_num_threads(context.num_threads)
    pipeline, _ = read_pipeline(context, context.quantization)
    encoder = build_checked(pipeline, pipeline.tokenizer(options.max_seq_length), context.model_name)
    module = rank_module(encoder, f"models.{context.model_name}.parallel")
    return {MODULE: RankModule(module=module, splits_itself=True)}


def read_pipeline(context: LoadContext, policy: QuantizationPolicy | None) -> tuple[Pipeline, str]:
    """The library's modules, and what of them is quantized.

    Raises:
        SourceError: The folder is no text embedding model, or needs code of its own.
        ConfigError: The policy does not fit.
    """
    done = ""

    def quantize(transformer: torch.nn.Module) -> None:
        nonlocal done
        components = {"transformer": Component(module=transformer, defaults=QUANTIZATION_SKIP)}
        place = f"models.{context.model_name}.quantization"
        done = quantize_loaded(components, policy, LINEAR_METHODS, place=place)

    options = context.options
    assert isinstance(options, EmbeddingOptions)
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    pipeline = _pipeline_class(context.path)(context.path, context.device, dtype, quantize)
    return pipeline, done


def _pipeline_class(path: Path) -> type[Pipeline]:
    kind = ModelFiles(path).json("config_sentence_transformers.json").get("model_type")
    return {"SparseEncoder": SparsePipeline, "MultiVectorEncoder": MultiVectorPipeline}.get(str(kind), Pipeline)


def build_checked(pipeline: Pipeline, tokenizer: TextTokenizer, model_name: str) -> Encoder:
    """The first mode whose vectors equal the library's on texts of many lengths.

    Raises:
        SourceError: Not even the library's own modules agree with themselves.
    """
    texts = [" ".join(_CHECK_WORDS[count : 2 * count]) for count in _CHECK_NUM_WORDS]
    sequences = tokenizer.encode_texts(texts, first_index=0, truncate_tokens=-1)
    with torch.inference_mode():
        expected = [pipeline.reference(sequence).numpy() for sequence in sequences]
    for trial, mode in enumerate(MODES):
        if trial:
            pipeline.reload()
        try:
            encoder = build(pipeline, mode)
            found = encoder.encode(
                [EncoderInput(token_ids=sequence, wanted=pipeline.output_types) for sequence in sequences]
            )
            rows = zip(expected, map(pipeline.flatten, found), strict=True)
            loss = max(max_loss(a[None], b[None], rounding=_ROUNDING[pipeline.dtype]) for a, b in rows)
        except _TRIAL_ERRORS as error:
            _LOG.info("%s does not run %s: %s: %s", model_name, mode, type(error).__name__, error)
            continue
        if loss <= _MAX_LOSS[pipeline.dtype]:
            _LOG.info("%s runs %s; greatest distance to the library %.1e", model_name, mode, loss)
            return encoder
        _LOG.warning("%s does not run %s: its vectors are %.1e away from the library's", model_name, mode, loss)
        encoder.close()
    raise SourceError("The model's vectors differ from the library's however it is run. Please report this model.")


def build(pipeline: Pipeline, mode: str) -> Encoder:
    """An encoder of this mode; changes the pipeline's modules.

    Raises:
        NotImplementedError: The model has no layers that can be fused.
    """
    transformer = pipeline.transformer
    attention: PackedAttention | None = None
    if mode in ("fused", "packed"):
        attention = PackedAttention()
        if mode == "fused" and not _fuse(transformer, attention):
            attention.close()
            raise NotImplementedError("none of its layers has a structure that is known")
        transformer.set_attn_implementation(attention.name)
        transformer.config.use_cache = False  # a decoder would keep all keys and values for tokens that never come
    if mode != "stock" and not has_kernels(transformer.device):
        pack_linears(transformer)
    split = pipeline.split()
    return Encoder(
        _forward(split.body, attention, pipeline.pad_token_id, mode),
        pooling=pipeline.pooling,
        pools_prompt=pipeline.pools_prompt,
        tail=pipeline.tail,
        normalizes=pipeline.normalizes,
        dimension=pipeline.dimension,
        attention=attention,
        sparse_head=split.sparse_head,
        multi_vector_head=split.multi_vector_head,
    )


def _fuse(transformer: Any, attention: PackedAttention) -> int:
    if has_kernels(transformer.device):
        from sixfold.plugins.embedding import gpu_layers  # its kernels need Triton, which is there on GPUs only

        return gpu_layers.fuse_layers(transformer, attention)
    return fuse_layers(transformer, attention)


def _forward(body: Any, attention: PackedAttention | None, pad_token_id: int, mode: str) -> Forward:
    if attention is None:
        return GroupedForward(body, pad_token_id, mode=mode)
    if has_kernels(next(body.parameters()).device):
        from sixfold.plugins.embedding.flat_forward import FlatForward

        return FlatForward(body, attention, mode=mode)
    return PackedForward(body, attention, mode=mode)


def max_loss(expected: NDArray[np.float32], actual: NDArray[np.float32], *, rounding: float = 0.0) -> float:
    """The greatest of 1 - cosine and the relative difference of lengths over all rows; inf if anything is not finite.

    Args:
        expected: [sequences, dim].
        actual: Likewise.
        rounding: Relative difference of lengths that does not count.
    """
    lengths = np.linalg.norm(expected, axis=1), np.linalg.norm(actual, axis=1)
    cosine = (expected * actual).sum(axis=1) / (lengths[0] * lengths[1])
    loss = float(np.maximum(1 - cosine, np.abs(lengths[1] / lengths[0] - 1) - rounding).max())
    return loss if np.isfinite(loss) else float("inf")
