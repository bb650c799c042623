"""Scores equal sentence-transformers' CrossEncoder, for every way to run a classifier and every rule of truncation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, models, pre_tokenizers

from sixfold.core.errors import ConfigError, InvalidRequest, SourceError
from sixfold.core.messages import Request
from sixfold.plugins.embedding.rerank.loader import MODES, build
from sixfold.plugins.embedding.rerank.model import CrossEncoderModel
from sixfold.plugins.embedding.rerank.pairs import longest_first
from sixfold.plugins.embedding.rerank.pipeline import CrossPipeline
from sixfold.plugins.embedding.rerank.schema import ScoreInput
from tests.plugins.embedding import rerank_models as tiny

MODE_OF = {
    "bert": "fused",
    "xlm-roberta": "fused",
    "distilbert": "packed",
    "modernbert": "packed",
    "qwen3": "packed",
    "mpnet": "grouped",
}


@pytest.fixture(scope="module")
def documents() -> tuple[str, ...]:
    """Texts of 1 to 58 words and some of 100 and more, which must be cut, in no order."""
    random = np.random.default_rng(3)
    return tuple(tiny.random_text(random, n) for n in [1, 58, 2, 2, 3, 17, 18, 19, 200, 40, 5, 100, 33, 34])


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_classifier(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def bert(bert_path: Path) -> CrossEncoderModel:
    return tiny.load_classifier(bert_path)


def library(path: Path, pairs: list[tuple[str, str]], **options: Any) -> Any:
    stock: Any = CrossEncoder(str(path), device="cpu")
    return stock.predict(pairs, show_progress_bar=False, **options)


@pytest.mark.parametrize("architecture", MODE_OF)
def test_scores_equal_the_librarys(architecture: str, tmp_path: Path, documents: tuple[str, ...]) -> None:
    path = tiny.save_classifier(tmp_path, architecture)
    model = tiny.load_classifier(path)
    assert model.info.details["execution"] == MODE_OF[architecture]
    found = tiny.scores_of(model, ScoreInput(queries=("w3 w5 w8 w1",), documents=documents, truncate_tokens=-1))
    expected = library(path, [("w3 w5 w8 w1", document) for document in documents])
    assert np.ptp(expected) > 0.01, "the oracle must tell the documents apart"
    np.testing.assert_allclose(found, expected, atol=1e-5)
    model.close()


@pytest.mark.parametrize("mode", MODES)
def test_each_way_to_run_a_bert_gives_the_same_scores(
    mode: str, bert: CrossEncoderModel, bert_path: Path, documents: tuple[str, ...]
) -> None:
    wanted = ScoreInput(queries=("w3 w5",), documents=documents, truncate_tokens=-1)
    pipeline = CrossPipeline(bert_path, "cpu", torch.float32)
    pairs = pipeline.tokenizer(None, truncates=False).encode(wanted, 0, len(documents))
    encoder = build(pipeline, mode)
    np.testing.assert_allclose(encoder.score(pairs)[:, 1], tiny.scores_of(bert, wanted), atol=1e-5)
    encoder.close()


def test_a_batched_score_equals_the_score_alone(bert: CrossEncoderModel, documents: tuple[str, ...]) -> None:
    together = tiny.scores_of(bert, ScoreInput(queries=("w3",), documents=documents, truncate_tokens=-1))
    alone = [
        tiny.scores_of(bert, ScoreInput(queries=("w3",), documents=(document,), truncate_tokens=-1))[0]
        for document in documents
    ]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_query_for_each_document_is_paired_by_place(
    bert: CrossEncoderModel, bert_path: Path, documents: tuple[str, ...]
) -> None:
    found = tiny.scores_of(bert, ScoreInput(queries=documents[::-1], documents=documents, truncate_tokens=-1))
    expected = library(bert_path, list(zip(documents[::-1], documents, strict=True)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid(), torch.nn.Tanh()], ids=str)
def test_the_activation_is_the_models_own(activation: Any, tmp_path: Path, documents: tuple[str, ...]) -> None:
    path = tiny.save_classifier(tmp_path, activation_fn=activation)
    model = tiny.load_classifier(path)
    assert model.info.details["activation"] == type(activation).__name__
    pairs = [("w3 w5", document) for document in documents]
    wanted: dict[str, Any] = {"queries": ("w3 w5",), "documents": documents, "truncate_tokens": -1}
    np.testing.assert_allclose(tiny.scores_of(model, ScoreInput(**wanted)), library(path, pairs), atol=1e-5)
    logits = library(path, pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(tiny.scores_of(model, ScoreInput(**wanted, raw_scores=True)), logits, atol=1e-5)


def test_the_default_prompt_goes_before_the_query(tmp_path: Path, documents: tuple[str, ...]) -> None:
    path = tiny.save_classifier(tmp_path, prompts={"ask": "w7 w8 "}, default_prompt_name="ask")
    found = tiny.scores_of(
        tiny.load_classifier(path), ScoreInput(queries=("w3",), documents=documents, truncate_tokens=-1)
    )
    np.testing.assert_allclose(found, library(path, [("w3", d) for d in documents]), atol=1e-5)


def test_bfloat16_keeps_close_to_float32(bert: CrossEncoderModel, bert_path: Path, documents: tuple[str, ...]) -> None:
    wanted = ScoreInput(queries=("w3 w5",), documents=documents, truncate_tokens=-1)
    found = tiny.scores_of(tiny.load_classifier(bert_path, dtype="bfloat16"), wanted)
    np.testing.assert_allclose(found, tiny.scores_of(bert, wanted), atol=0.05)


@given(first=st.integers(0, 40), second=st.integers(0, 40), limit=st.integers(1, 50))
def test_pairs_are_cut_as_the_tokenizers_library_cuts_them(first: int, second: int, limit: int) -> None:
    words: Any = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.enable_truncation(limit, strategy="longest_first")
    ids = words.encode("a " * first, "b " * second).ids
    assert (ids.count(0), ids.count(1)) == longest_first(first, second, limit)


def test_documents_are_cut_to_their_own_limit_first(bert: CrossEncoderModel, bert_path: Path) -> None:
    long_document = " ".join(tiny.WORDS)
    found = tiny.scores_of(bert, ScoreInput(queries=("w3",), documents=(long_document,), max_document_tokens=7))
    expected = library(bert_path, [("w3", " ".join(tiny.WORDS[:7]))])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_operator_may_let_long_pairs_be_cut(bert_path: Path) -> None:
    model = tiny.load_classifier(bert_path, truncate=True, max_seq_length=20)
    wanted = ScoreInput(queries=("w3",), documents=(" ".join(tiny.WORDS),))
    expected = library(bert_path, [("w3", " ".join(tiny.WORDS[:16]))])
    np.testing.assert_allclose(tiny.scores_of(model, wanted), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"documents": ("w1", "w1 " * 90)}, "documents", r"documents\[1\] and its query have 94 tokens; .* takes 60"),
        ({"documents": ("w1 " * 90,), "documents_field": "text_2"}, "text_2", r"text_2\[0\]"),
        ({"documents": ("w1",) * 9}, "documents", "9 items; at most 8"),
        ({"documents": ("w1",), "truncate_tokens": 4}, "truncate_prompt_tokens", "above 4"),
    ],
)
def test_bad_input_is_refused_by_name(fields: dict[str, Any], param: str, says: str, bert_path: Path) -> None:
    model = tiny.load_classifier(bert_path, max_inputs=8)
    request = Request(request_id="r", input=ScoreInput(queries=("w1",), **fields), arrived_s=0.0)
    with pytest.raises(InvalidRequest, match=says) as caught:
        [s for piece in model.split(request) for s in model.prepare(request, piece)]
    assert caught.value.status == 400
    assert caught.value.param == param


def test_a_model_with_several_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="sorts into 3 classes"):
        tiny.load_classifier(tiny.save_classifier(tmp_path, num_labels=3))


def test_a_limit_above_the_models_is_refused(bert_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes at most 60"):
        tiny.load_classifier(bert_path, max_seq_length=61)


def test_counters_count_pairs_tokens_and_padding(bert_path: Path) -> None:
    model = tiny.load_classifier(bert_path)
    model.warm_up()
    assert set(model.stats().values()) == {0}
    tiny.scores_of(model, ScoreInput(queries=("w1",), documents=("w1", "w1 w2")))
    assert model.stats() == {"rerank_pairs_total": 2, "rerank_tokens_total": 11, "rerank_padding_tokens_total": 1}
