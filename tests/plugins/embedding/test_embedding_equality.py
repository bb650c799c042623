"""Vectors equal sentence-transformers' own, for every way to run a model and every part that a model may have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from sixfold.core.errors import SourceError
from sixfold.plugins.embedding.loader import MODES, build, max_loss
from sixfold.plugins.embedding.pipeline import Pipeline

MODE_OF = {
    "bert": "fused",
    "xlm-roberta": "fused",
    "distilbert": "packed",
    "modernbert": "packed",
    "qwen3": "packed",
    "mpnet": "grouped",
}


def library(path: Path, texts: list[str], **options: Any) -> Any:
    library: Any = SentenceTransformer(str(path), device="cpu")
    return library.encode(texts, show_progress_bar=False, **options)


@pytest.mark.parametrize("architecture", MODE_OF)
def test_vectors_equal_the_librarys(
    architecture: str, save_model: Any, load_folder: Any, encode: Any, texts: list[str]
) -> None:
    path = save_model(architecture, pooling="lasttoken" if architecture == "qwen3" else "mean")
    model = load_folder(path)
    assert model.info.details["execution"] == MODE_OF[architecture]
    np.testing.assert_allclose(encode(model, texts), library(path, texts), atol=1e-5)


@pytest.mark.parametrize(
    "parts",
    [
        {"pooling": "cls"},
        {"pooling": "max", "normalize": False},
        {"pooling": ["weightedmean", "mean_sqrt_len_tokens"], "normalize": False},
        {"pooling": "lasttoken", "dense": 16},
        {"pooling": "mean", "dense": 48, "normalize": False},
    ],
    ids=str,
)
def test_every_pooling_and_tail_equals_the_librarys(
    parts: dict[str, Any], save_model: Any, load_folder: Any, encode: Any, texts: list[str]
) -> None:
    path = save_model("bert", **parts)
    np.testing.assert_allclose(encode(load_folder(path), texts), library(path, texts), atol=2e-5)


def test_a_batched_vector_equals_the_vector_alone(bert: Any, encode: Any, texts: list[str]) -> None:
    alone = np.concatenate([encode(bert, [text]) for text in texts])
    np.testing.assert_allclose(encode(bert, texts), alone, atol=1e-6)


def test_bfloat16_stays_close_to_float32(
    bert: Any, bert_path: Path, load_folder: Any, encode: Any, texts: list[str]
) -> None:
    model = load_folder(bert_path, dtype="bfloat16")
    assert model.info.details["dtype"] == "bfloat16"
    assert max_loss(encode(bert, texts), encode(model, texts)) < 2e-3


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_equal_the_librarys(
    include_prompt: bool, save_model: Any, load_folder: Any, encode: Any, texts: list[str]
) -> None:
    path = save_model("bert", include_prompt=include_prompt, prompts={"query": "w1 w2 ", "document": ""})
    model = load_folder(path)
    expected = library(path, texts, prompt_name="query")
    np.testing.assert_allclose(encode(model, texts, prompt_name="query", truncate_tokens=-1), expected, atol=1e-5)
    np.testing.assert_allclose(encode(model, texts, input_type="query", truncate_tokens=-1), expected, atol=1e-5)
    assert np.abs(encode(model, texts, input_type="document") - expected).max() > 1e-3


def test_truncated_texts_equal_the_librarys(bert: Any, bert_path: Path, encode: Any, texts: list[str]) -> None:
    long_texts = [" ".join([text] * 9) for text in texts]
    np.testing.assert_allclose(encode(bert, long_texts, truncate_tokens=-1), library(bert_path, long_texts), atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_each_way_to_run_a_bert_gives_the_same_vectors(
    mode: str, bert: Any, bert_path: Path, encode: Any, texts: list[str]
) -> None:
    import torch

    pipeline = Pipeline(bert_path, "cpu", torch.float32)
    sequences = pipeline.tokenizer(None).encode_texts(texts, first_index=0, truncate_tokens=None)
    encoder = build(pipeline, mode)
    np.testing.assert_allclose(encoder.embed(sequences, [0] * len(texts)), encode(bert, texts), atol=1e-5)
    encoder.close()


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
def test_a_padding_token_inside_a_text_equals_the_librarys(
    architecture: str, save_model: Any, load_folder: Any, encode: Any
) -> None:
    texts = ["w1 <pad> w2 w3", "w4", "<pad>", "w1 w2 w3 w4"]
    path = save_model(architecture)
    np.testing.assert_allclose(encode(load_folder(path), texts), library(path, texts), atol=1e-5)


def test_a_folder_that_is_no_embedding_model_is_refused(tmp_path: Path, load_folder: Callable[..., Any]) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="can't load the model"):
        load_folder(tmp_path)
