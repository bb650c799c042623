"""Entry point of the embedding plugin; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from sixfold.core.benchmark.workload import Workload
from sixfold.core.family import Family, MetricKind, MetricSpec, ModelFiles
from sixfold.core.hookspecs import Api, hookimpl
from sixfold.core.runtime.quantization.methods import LINEAR_METHODS
from sixfold.core.telemetry.names import TraceNames
from sixfold.plugins.embedding import memory_need
from sixfold.plugins.embedding.clip.options import ClipOptions
from sixfold.plugins.embedding.options import EmbeddingOptions
from sixfold.plugins.embedding.probes import PROBES
from sixfold.plugins.embedding.rerank.options import CrossEncoderOptions
from sixfold.plugins.embedding.rerank.schema import ScoreInput, ScoreOutput
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput
from sixfold.plugins.embedding.vllm_options import VllmEmbeddingOptions
from sixfold.plugins.embedding.workloads import EMBEDDINGS

_BARE_ENCODERS = frozenset(
    "albert bert camembert deberta deberta-v2 distilbert electra ernie eurobert gte modernbert mpnet nomic_bert "
    "roberta xlm-roberta xlm-roberta-xl".split()
)
"""``model_type`` of text encoders that sentence-transformers serves with mean pooling when nothing else is said."""

_TOLERANCE = 1e-5
"""Of vectors and scores in float32; what is computed in fewer bits rounds more."""

_TRACE_NAMES = TraceNames(prepare="tokenize", first="encode", operations={"embed": "embeddings"})


_OWN_KINDS = frozenset(("SentenceTransformer", "SparseEncoder", "MultiVectorEncoder"))

_DUAL_ENCODERS = frozenset("clip siglip siglip2".split())
"""``model_type`` of encoders of texts and images that transformers runs the same way."""


def clip_folder(files: ModelFiles) -> str | None:
    """Where in the folder a text-and-image model lies: "" for its root, None if there is none.

    sentence-transformers keeps one in its first module's folder; other modules behind it (but Normalize) are not known.
    """
    if files.json("config.json").get("model_type") in _DUAL_ENCODERS:
        return ""
    if files.json("0_CLIPModel/config.json").get("model_type") in _DUAL_ENCODERS:
        return "0_CLIPModel"
    return None


def detect_clip(files: ModelFiles) -> int:
    """100 for a text-and-image model, else 0."""
    return 100 if clip_folder(files) is not None else 0


def detect(files: ModelFiles) -> int:
    """100 for a folder that sentence-transformers saved, 60 for a bare text encoder, else 0."""
    if clip_folder(files) is not None:
        return 0
    own = files.json("config_sentence_transformers.json")
    if own.get("model_type", "SentenceTransformer") not in _OWN_KINDS:
        return 0  # a cross-encoder
    if own or files.has("modules.json"):
        return 100
    config = files.json("config.json")
    architectures = config.get("architectures") or [""]
    is_bare = str(architectures[0]).endswith(("Model", "ForMaskedLM"))
    return 60 if is_bare and config.get("model_type") in _BARE_ENCODERS and not config.get("is_decoder") else 0


FAMILY = Family(
    name="embedding/sentence-transformers",
    summary="Text embeddings of any sentence-transformers model, run without padding.",
    operations=frozenset({"embed", "rerank", "score"}),
    loader="sixfold.plugins.embedding.loader:load",
    rank_loader="sixfold.plugins.embedding.loader:load_rank",
    parallel=memory_need.parallel_shape,
    input_type=EmbeddingInput | ScoreInput,
    output_type=EmbeddingOutput | ScoreOutput,
    options=EmbeddingOptions,
    trace_names=_TRACE_NAMES,
    extra="embedding",
    requires=("torch", "transformers", "sentence_transformers"),
    detect=detect,
    quantization=LINEAR_METHODS,
    quality="sixfold.plugins.embedding.quality:EmbeddingQuality",
    memory=memory_need.need,
    batch_tolerance=_TOLERANCE,
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


def detect_cross_encoder(files: ModelFiles) -> int:
    """100 for a folder that sentence-transformers saved as CrossEncoder, 80 for a classifier with one label, else 0."""
    own = files.json("config_sentence_transformers.json")
    if own:
        return 100 if own.get("model_type") == "CrossEncoder" else 0
    config = files.json("config.json")
    architectures = config.get("architectures") or [""]
    labels = config.get("id2label")
    num_labels = (
        len(cast("dict[str, str]", labels)) if isinstance(labels, dict) else config.get("num_labels", 2)
    )  # transformers' own default
    is_head = str(architectures[0]).endswith("ForSequenceClassification")
    return 80 if is_head and num_labels == 1 else 0


CROSS_ENCODER = Family(
    name="embedding/cross-encoder",
    summary="Rerank and score by any sentence-transformers cross-encoder, run without padding.",
    operations=frozenset({"rerank", "score"}),
    loader="sixfold.plugins.embedding.rerank.loader:load",
    input_type=ScoreInput,
    output_type=ScoreOutput,
    options=CrossEncoderOptions,
    trace_names=_TRACE_NAMES,
    extra="embedding",
    requires=("torch", "transformers", "sentence_transformers"),
    detect=detect_cross_encoder,
    memory=memory_need.need,
    batch_tolerance=_TOLERANCE,
    metrics=(
        MetricSpec(name="rerank_pairs_total", kind=MetricKind.COUNTER, help="Pairs that were scored."),
        MetricSpec(name="rerank_tokens_total", kind=MetricKind.COUNTER, help="Tokens of scored pairs."),
        MetricSpec(
            name="rerank_padding_tokens_total",
            kind=MetricKind.COUNTER,
            help="Padding tokens inside attention (packed models) or in whole batches (others).",
        ),
    ),
    default_max_queue_units=200_000,
)


CLIP = Family(
    name="embedding/clip",
    summary="Texts and images in one space: CLIP, SigLIP and their like.",
    operations=frozenset({"embed"}),
    loader="sixfold.plugins.embedding.clip.loader:load",
    input_type=EmbeddingInput,
    output_type=EmbeddingOutput,
    options=ClipOptions,
    trace_names=_TRACE_NAMES,
    extra="embedding",
    requires=("torch", "transformers", "PIL"),
    detect=detect_clip,
    memory=memory_need.need,
    batch_tolerance=_TOLERANCE,
    metrics=(
        MetricSpec(name="embedding_inputs_total", kind=MetricKind.COUNTER, help="Texts and images that were embedded."),
        MetricSpec(name="embedding_images_total", kind=MetricKind.COUNTER, help="Images that were embedded."),
        MetricSpec(name="embedding_tokens_total", kind=MetricKind.COUNTER, help="Tokens of texts that were embedded."),
    ),
    default_max_queue_units=200_000,
)


def detect_for_vllm(files: ModelFiles) -> int:
    """Half of what the native family says: it serves an entry that names no family wherever it is installed."""
    is_dense = files.json("config_sentence_transformers.json").get("model_type", "SentenceTransformer")
    return detect(files) // 2 if is_dense == "SentenceTransformer" else 0


VLLM = Family(
    name="embedding/vllm",
    summary="Text embeddings by vLLM, on GPUs; for embedders that are language models.",
    operations=frozenset({"embed"}),
    loader="sixfold.plugins.embedding.vllm_loader:load",
    input_type=EmbeddingInput,
    output_type=EmbeddingOutput,
    options=VllmEmbeddingOptions,
    trace_names=_TRACE_NAMES,
    extra="vllm",
    requires=("vllm", "transformers", "tokenizers"),
    detect=detect_for_vllm,
    memory=memory_need.vllm_need,
    metrics=(
        MetricSpec(name="embedding_inputs_total", kind=MetricKind.COUNTER, help="Inputs that were embedded."),
        MetricSpec(name="embedding_tokens_total", kind=MetricKind.COUNTER, help="Tokens that were embedded."),
    ),
    default_max_queue_units=8_388_608,
)


@hookimpl
def register_families(register: Callable[[Family], None]) -> None:
    """Offers the families of sentence-transformers' models, cross-encoders, text-and-image models and vLLM."""
    register(FAMILY)
    register(CROSS_ENCODER)
    register(CLIP)
    register(VLLM)


@hookimpl
def register_apis(register: Callable[[Api], None]) -> None:
    """Offers ``/v1/embeddings`` and the rerank and score routes."""
    register(
        Api(
            modality="embedding",
            factory="sixfold.plugins.embedding.api:EmbeddingAPI",
            examples={
                "embed": "curl $url/v1/embeddings -H 'content-type: application/json' "
                """-d '{"model": "$model", "input": ["The first text", "The second text"]}'""",
                "rerank": "curl $url/v1/rerank -H 'content-type: application/json' "
                """-d '{"model": "$model", "query": "Who eats?", "documents": ["A man has a meal.", "It rains."]}'""",
            },
            probes=PROBES,
        )
    )


@hookimpl
def register_workloads(register: Callable[[Workload], None]) -> None:
    """Offers embeddings to ``sixfold bench``."""
    register(EMBEDDINGS)
