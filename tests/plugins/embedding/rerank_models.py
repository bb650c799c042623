"""Tiny cross-encoder folders with random weights, and a driver that takes a request through a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    XLMRobertaConfig,
)

from sixfold.core.batching.model import Granted
from sixfold.core.family import LoadContext
from sixfold.core.messages import Request
from sixfold.plugins.embedding.rerank.loader import load
from sixfold.plugins.embedding.rerank.model import CrossEncoderModel
from sixfold.plugins.embedding.rerank.options import CrossEncoderOptions
from sixfold.plugins.embedding.rerank.schema import ScoreInput

WORDS = [f"w{n}" for n in range(90)]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
MAX_TOKENS = 60
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IDS: dict[str, Any] = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "vocab_size": 94}

_Config = Callable[..., Any]
_BERT: _Config = BertConfig
_XLM: _Config = XLMRobertaConfig
_DISTIL: _Config = DistilBertConfig
_MODERN: _Config = ModernBertConfig
_MPNET: _Config = MPNetConfig
_QWEN3: _Config = Qwen3Config

CLASSIFIERS: dict[str, _Config] = {
    "bert": partial(_BERT, **SMALL, **IDS, max_position_embeddings=64),
    "xlm-roberta": partial(_XLM, **SMALL, **IDS, max_position_embeddings=66, type_vocab_size=1),
    "distilbert": partial(_DISTIL, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64, **IDS),
    "modernbert": partial(
        _MODERN, **SMALL, **IDS, cls_token_id=0, sep_token_id=2, local_attention=16, classifier_pooling="mean"
    ),
    "mpnet": partial(_MPNET, **SMALL, **IDS, max_position_embeddings=66),
    "qwen3": partial(_QWEN3, **SMALL, **IDS, num_key_value_heads=2, head_dim=8, max_position_embeddings=64),
}


def tokenizer(architecture: str) -> Any:
    """Whole words, with the separators of a pair; only BERT's makes segment ids."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    types = ["token_type_ids"] if architecture == "bert" else []
    backend: Any = PreTrainedTokenizerFast
    return backend(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", *types, "attention_mask"],
    )


def save_classifier(folder: Path, architecture: str = "bert", *, num_labels: int = 1, **options: Any) -> Path:
    """A folder as `CrossEncoder.save` writes it; ``options`` go to CrossEncoder."""
    torch.default_generator.manual_seed(7)
    auto: Any = AutoModelForSequenceClassification
    network = auto.from_config(CLASSIFIERS[architecture](num_labels=num_labels))
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 or "norm" not in name.lower():
            parameter.data.normal_(std=0.3)  # the library's own start is so flat that any two pairs look alike
    network.save_pretrained(folder)
    tokenizer(architecture).save_pretrained(folder)
    CrossEncoder(str(folder), device="cpu", **options).save(str(folder / "saved"))
    return folder / "saved"


def load_classifier(path: Path, **options: Any) -> CrossEncoderModel:
    """As the worker loads it."""
    return load(
        LoadContext(model_name="m", path=path, device="cpu", num_threads=1, options=CrossEncoderOptions(**options))
    )


def scores_of(model: Any, wanted: ScoreInput) -> tuple[float, ...]:
    """What the batch manager does with a request, in one thread and one step."""
    request = Request(request_id="r", input=wanted, arrived_s=0.0)
    sequences = [s for piece in model.split(request) for s in model.prepare(request, piece)]
    outcomes = model.step([Granted(s, model.cost(s).units) for s in sequences])
    assert all(outcome.done and outcome.error is None for outcome in outcomes)
    found: tuple[float, ...] = model.finish(request, sequences).result.scores
    return found


def random_text(random: np.random.Generator, num_words: int) -> str:
    """Words of the tokenizer's vocabulary."""
    return " ".join(random.choice(WORDS, size=num_words))
