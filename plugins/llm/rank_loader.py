"""Loads what a rank other than the first needs of a decoder: its layers, without head and cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.modeling_utils import AttentionInterface

from sixfold.core.family import LoadContext
from sixfold.core.parallel.modules import RankModule
from sixfold.plugins.llm.cache_policy import split
from sixfold.plugins.llm.divided_attention import DIVIDED_ATTENTION, divided_attention
from sixfold.plugins.llm.divided_decoder import DividedDecoder, rows_alone
from sixfold.plugins.llm.optimization import Passes, decoder_of
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.prefill_ranks import MODULE
from sixfold.plugins.llm.stock_model import choose_dtype, read_files, read_model, set_attention

_ATTENTION_TABLE: Any = AttentionInterface


def load_rank(context: LoadContext) -> Mapping[str, RankModule]:
    """The `Family.rank_loader` of decoders.

    Raises:
        ConfigError: An option does not fit the model.
        SourceError: The folder's files are not a loadable model.
    """
    options = context.options
    assert isinstance(options, TransformersOptions)
    torch.set_num_threads(context.num_threads)
    _ATTENTION_TABLE.register(DIVIDED_ATTENTION, divided_attention)
    device = torch.device(context.device)
    dtype = choose_dtype(options.dtype, device)
    policy = split(context.quantization, place=f"models.{context.model_name}.quantization")
    model = read_files(lambda: read_model(context.path, dtype, device), "weights")
    passes = Passes(quantization=policy.weights, model_name=context.model_name, fuse=False)
    passes.run(model, decoder_of(model), packed=options.compute_packed)
    set_attention(model, DIVIDED_ATTENTION)
    base = getattr(model, model.base_model_prefix)
    module = DividedDecoder(rows_alone(base), policy.scheme)
    return {MODULE: RankModule(module=module, splits_itself=True)}
