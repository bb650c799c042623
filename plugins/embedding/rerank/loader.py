"""Loads a cross-encoder and finds by trial the fastest way to run it that equals the library."""

from __future__ import annotations

import logging

import torch

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import SourceError
from sixfold.core.family import LoadContext
from sixfold.core.runtime.linear import pack_linears
from sixfold.plugins.embedding.attention import PackedAttention
from sixfold.plugins.embedding.fused import fuse_layers
from sixfold.plugins.embedding.rerank.forward import GroupedPairs, PackedPairs
from sixfold.plugins.embedding.rerank.model import CrossEncoder, CrossEncoderModel
from sixfold.plugins.embedding.rerank.options import CrossEncoderOptions
from sixfold.plugins.embedding.rerank.pairs import PairTokens
from sixfold.plugins.embedding.rerank.pipeline import CrossPipeline
from sixfold.plugins.embedding.rerank.schema import ScoreInput
from sixfold.plugins.embedding.schema import TRUNCATE_TO_LIMIT

_LOG = logging.getLogger(__name__)

MODES = ("fused", "packed", "grouped", "stock")
"""From the fastest to the one that can't fail, as for embeddings."""

# Of logits, relative to their size and at least to 1; a pair that sees another's tokens is off by far more.
_MAX_DIFFERENCE = {torch.float32: 3e-5, torch.bfloat16: 0.1}

_TRIAL_ERRORS = (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)

_QUERY = "may this patient get penicillin"
_WORDS = "the patient has no known allergy to penicillin and 12 mg were given at night ; see page 4".split() * 120
_CHECK_NUM_WORDS = (1, 3, 3, 9, 10, 11, 40, 42, 90, 91, 1000)


def load(context: LoadContext) -> CrossEncoderModel:
    """The family's loader; runs in the worker process.

    Raises:
        SourceError: The folder is no cross-encoder with one label, or needs code of its own.
        ConfigError: An option does not fit the model.
    """
    options = context.options
    assert isinstance(options, CrossEncoderOptions)
    torch.set_num_threads(context.num_threads)
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    context.report(0.1, "reading weights")
    pipeline = CrossPipeline(context.path, context.device, dtype)
    tokenizer = pipeline.tokenizer(options.max_seq_length, truncates=options.truncate)
    context.report(0.5, "checking the scores against the library's")
    encoder = build_checked(pipeline, context.model_name)
    context.report(1.0, f"runs {encoder.mode}")
    return CrossEncoderModel(
        info=ModelInfo(
            max_model_len=tokenizer.max_tokens,
            parameters=pipeline.num_parameters,
            memory_bytes=pipeline.num_parameters * dtype.itemsize,
            details={
                "activation": type(pipeline.activation).__name__,
                "dtype": str(dtype).removeprefix("torch."),
                "execution": encoder.mode,
                "max_inputs": options.max_inputs,
            },
        ),
        encoder=encoder,
        tokenizer=tokenizer,
        max_inputs=options.max_inputs,
        num_threads=context.num_threads,
    )


def build_checked(pipeline: CrossPipeline, model_name: str) -> CrossEncoder:
    """The first mode whose logits equal the library's on pairs of many lengths, the longest of them cut.

    Raises:
        SourceError: Even the token ids differ from the library's, or no mode gives its logits.
    """
    documents = tuple(" ".join(_WORDS[count : 2 * count]) for count in _CHECK_NUM_WORDS)
    pairs = _checked_pairs(pipeline, documents)
    expected = pipeline.logits([(_QUERY, document) for document in documents]).numpy()
    allowed = _MAX_DIFFERENCE[pipeline.dtype]
    for trial, mode in enumerate(MODES):
        if trial:
            pipeline.reload()
        try:
            encoder = build(pipeline, mode)
            found = encoder.score(pairs)[:, 0]
        except _TRIAL_ERRORS as error:
            _LOG.info("%s does not run %s: %s: %s", model_name, mode, type(error).__name__, error)
            continue
        worst = float((abs(found - expected) / abs(expected).clip(min=1.0)).max())
        if worst <= allowed:
            _LOG.info("%s runs %s; greatest distance to the library %.1e", model_name, mode, worst)
            return encoder
        _LOG.warning("%s does not run %s: its scores are %.1e away from the library's", model_name, mode, worst)
        encoder.close()
    raise SourceError("The model's scores differ from the library's however it is run. Please report this model.")


def build(pipeline: CrossPipeline, mode: str) -> CrossEncoder:
    """A cross-encoder of this mode; changes the pipeline's modules.

    Raises:
        NotImplementedError: The model has no layers that can be fused.
    """
    classifier = pipeline.classifier
    attention: PackedAttention | None = None
    if mode in ("fused", "packed"):
        attention = PackedAttention()
        try:
            if mode == "fused" and not fuse_layers(classifier, attention):
                raise NotImplementedError("none of its layers has BERT's structure")
            classifier.set_attn_implementation(attention.name)
        except BaseException:
            attention.close()
            raise
    if mode != "stock":
        pack_linears(classifier)
    pad_token_id, takes_types = pipeline.pad_token_id, pipeline.takes_types
    forward = (
        GroupedPairs(classifier, pad_token_id=pad_token_id, takes_types=takes_types, mode=mode)
        if attention is None
        else PackedPairs(classifier, attention, pad_token_id=pad_token_id, takes_types=takes_types, mode=mode)
    )
    return CrossEncoder(forward, activation=pipeline.activation, attention=attention)


def _checked_pairs(pipeline: CrossPipeline, documents: tuple[str, ...]) -> list[PairTokens]:
    wanted = ScoreInput(queries=(_QUERY,), documents=documents, truncate_tokens=TRUNCATE_TO_LIMIT)
    pairs = pipeline.tokenizer(None, truncates=False).encode(wanted, 0, len(documents))
    for document, pair in zip(documents, pairs, strict=True):
        if pair.token_ids.tolist() != pipeline.token_ids((_QUERY, document)).tolist():
            raise SourceError(
                f"Sixfold tokenizes a pair for this model otherwise than sentence-transformers does ({len(document)} "
                "characters). Please report this model."
            )
    return pairs
