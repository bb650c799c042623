"""Meets the other ranks of a replica, and proves that long documents come out as in one process."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from sixfold.core.errors import ConfigError
from sixfold.core.family import LoadContext
from sixfold.core.parallel.attention import UnsupportedAttention
from sixfold.core.parallel.leader import Leader
from sixfold.core.parallel.modules import RankModule
from sixfold.plugins.embedding.divided_forward import DividedEncoder, DividedForward
from sixfold.plugins.embedding.encoder import Encoder, EncoderInput
from sixfold.plugins.embedding.forward import PackedModel
from sixfold.plugins.embedding.memory_need import parallel_tokens
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.pipeline import Pipeline
from sixfold.plugins.embedding.tokenizing import TextTokenizer

MODULE = "encoder"
"""Name of the module that all ranks have."""

_CHECKED_TOKENS = 203
_MAX_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def rank_module(encoder: Encoder, place: str) -> DividedEncoder:
    """What a rank computes.

    Raises:
        ConfigError: The model runs in padded batches.
    """
    if not isinstance(encoder.forward, PackedModel):
        raise ConfigError(
            f"{place}: the model runs {encoder.mode}, and only packed models are divided among ranks. Remove 'parallel'."
        )
    return DividedEncoder(encoder.forward)


def check_degrees(context: LoadContext) -> None:
    """Refuses rows over ranks, before weights are read.

    Raises:
        ConfigError: The ranks shall share them.
    """
    if context.parallel is not None and context.parallel.degrees.num_row_groups > 1:
        raise ConfigError(
            f"models.{context.model_name}.parallel: the ranks of an embedding model share the tokens of long documents, and "
            "that is 'context'. Set it in place of 'cfg' and 'data', or use 'replicas' for more texts at once."
        )


def divide_documents(
    context: LoadContext, leader: Leader, encoder: Encoder, pipeline: Pipeline, tokenizer: TextTokenizer
) -> None:
    """Lets the ranks of ``leader`` compute long documents along from now on.

    Raises:
        ConfigError: The model can't be divided, or something else comes out.
        SixfoldError: A rank ended, or did not load in time.
    """
    options = context.options
    assert isinstance(options, EmbeddingOptions)
    place = f"models.{context.model_name}.parallel"
    module = rank_module(encoder, place)
    shared: Mapping[str, RankModule] = {MODULE: RankModule(module=module, splits_itself=True)}
    context.report(0.9, "waiting for the other ranks")
    leader.share(shared)
    forward = DividedForward(encoder.forward, module, leader, parallel_tokens(options, context.device))
    vocab_size: int = pipeline.transformer.get_input_embeddings().num_embeddings
    generator = np.random.default_rng(0)
    ids = generator.integers(0, vocab_size, min(_CHECKED_TOKENS, tokenizer.max_tokens))
    checked = [EncoderInput(token_ids=ids.astype(np.int64), wanted=encoder.output_types)]
    alone = pipeline.flatten(encoder.encode(checked)[0])
    encoder.forward = forward
    try:
        with forward.dividing_from(1):
            divided = pipeline.flatten(encoder.encode(checked)[0])
    except UnsupportedAttention as error:
        raise ConfigError(f"{place}: {error}. Remove 'parallel'.") from error
    difference = float(np.abs(divided - alone).max() / np.abs(alone).max())
    allowed = _MAX_DIFFERENCE[pipeline.dtype]
    if not difference <= allowed:
        raise ConfigError(
            f"{place}: divided as {leader.degrees}, the model gives other vectors than in one process (relative difference "
            f"{difference:.2g}, allowed {allowed:g}), so it is not served. Remove 'parallel', and please report this model."
        )
