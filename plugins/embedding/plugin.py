"""Entry point of the embedding plugin; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

from sixfold.core.family import Family, MetricKind, MetricSpec, ModelFiles
from sixfold.core.hookspecs import Api, hookimpl
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput

_BARE_ENCODERS = frozenset(
    "albert bert camembert deberta deberta-v2 distilbert electra ernie eurobert gte modernbert mpnet nomic_bert "
    "roberta xlm-roberta xlm-roberta-xl".split()
)
"""``model_type`` of text encoders that sentence-transformers serves with mean pooling when nothing else is said."""


def detect(files: ModelFiles) -> int:
    """100 for a folder that sentence-transformers saved, 60 for a bare text encoder, else 0."""
    own = files.json("config_sentence_transformers.json")
    if own.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        return 0  # a cross-encoder, sparse or multi-vector model
    if own or files.has("modules.json"):
        return 100
    config = files.json("config.json")
    architectures = config.get("architectures") or [""]
    is_bare = str(architectures[0]).endswith(("Model", "ForMaskedLM"))
    return 60 if is_bare and config.get("model_type") in _BARE_ENCODERS and not config.get("is_decoder") else 0


FAMILY = Family(
    name="embedding/sentence-transformers",
    summary="Text embeddings of any sentence-transformers model, run without padding.",
    operations=frozenset({"embed"}),
    loader="sixfold.plugins.embedding.loader:load",
    input_type=EmbeddingInput,
    output_type=EmbeddingOutput,
    options=EmbeddingOptions,
    extra="embedding",
    requires=("torch", "transformers", "sentence_transformers"),
    detect=detect,
    metrics=(
        MetricSpec(name="embedding_inputs_total", kind=MetricKind.COUNTER, help="Inputs that were embedded."),
        MetricSpec(name="embedding_tokens_total", kind=MetricKind.COUNTER, help="Tokens that were embedded."),
        MetricSpec(
            name="embedding_padding_tokens_total",
            kind=MetricKind.COUNTER,
            help="Padding tokens inside attention (packed models) or in whole batches (others).",
        ),
    ),
    # Half a minute of work for a small model on two cores.
    default_max_queue_units=200_000,
)


@hookimpl
def register_families(register: Callable[[Family], None]) -> None:
    """Offers the sentence-transformers family."""
    register(FAMILY)


@hookimpl
def register_apis(register: Callable[[Api], None]) -> None:
    """Offers ``/v1/embeddings``."""
    register(
        Api(
            modality="embedding",
            factory="sixfold.plugins.embedding.api:EmbeddingAPI",
            examples=(
                "curl $url/v1/embeddings -H 'content-type: application/json' "
                """-d '{"model": "$model", "input": ["The first text", "The second text"]}'""",
            ),
        )
    )
