"""Requests through a model: pieces, limits, prompts, dimensions, counters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sixfold.core.batching.model import Granted
from sixfold.core.errors import ConfigError, ContextLengthExceeded, InvalidRequest, RequestError, StepFailed
from sixfold.core.messages import Cost, Request
from sixfold.plugins.embedding.model import EmbeddingModel
from sixfold.plugins.embedding.pieces import Piece
from sixfold.plugins.embedding.schema import EmbeddingInput
from sixfold.plugins.embedding.sequence import EmbeddingSequence


def request(**fields: Any) -> Request[Any]:
    return Request(request_id="r", input=EmbeddingInput(**fields), arrived_s=0.0)


@given(st.lists(st.sampled_from([1, 10, 30_000, 200_000]), min_size=1, max_size=200))
def test_pieces_cover_all_inputs_in_order_and_are_bounded(lengths: list[int]) -> None:
    texts = tuple("x" * length for length in lengths)
    pieces = EmbeddingModel.split(None, request(texts=texts))  # type: ignore[arg-type]  # needs nothing of the model
    assert [p.start for p in pieces] == [0, *(p.stop for p in pieces[:-1])]
    assert pieces[-1].stop == len(texts)
    for piece in pieces:
        assert 1 <= piece.stop - piece.start <= 64
        assert piece.stop - piece.start == 1 or sum(lengths[piece.start : piece.stop]) <= 100_000


def test_results_keep_the_order_of_the_inputs_and_count_their_tokens(
    bert: EmbeddingModel, drive: Any, encode: Any, texts: list[str]
) -> None:
    finish = drive(bert, EmbeddingInput(texts=tuple(texts)))
    assert finish.usage.counts == {"prompt_tokens": sum(len(t.split()) + 2 for t in texts)}
    reverse = encode(bert, texts[::-1])
    np.testing.assert_allclose(encode(bert, texts), reverse[::-1], atol=1e-6)


def test_token_ids_give_the_same_vectors_as_their_texts(bert: EmbeddingModel, drive: Any, encode: Any) -> None:
    ids = drive(bert, EmbeddingInput(token_ids=((0, 4, 5, 6, 2), (0, 93, 2)))).result
    np.testing.assert_allclose(
        np.frombuffer(ids.vectors, "<f4").reshape(2, 32), encode(bert, ["w0 w1 w2", "w89"]), atol=1e-6
    )


def test_fewer_dimensions_are_the_first_ones_normalised_again(
    bert: EmbeddingModel, encode: Any, texts: list[str]
) -> None:
    full, cut = encode(bert, texts), encode(bert, texts, dimensions=8)
    expected = full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, atol=1e-6)


def test_fewer_dimensions_are_only_cut_where_the_model_does_not_normalise(
    save_model: Any, load_folder: Any, encode: Any, texts: list[str]
) -> None:
    model = load_folder(save_model("bert", normalize=False))
    np.testing.assert_array_equal(encode(model, texts, dimensions=8), encode(model, texts)[:, :8])


@pytest.mark.parametrize(
    ("fields", "error", "param", "says"),
    [
        ({"texts": ("w1", "w1 " * 59)}, ContextLengthExceeded, "input", r"input\[1\] has 61 tokens; .* takes 60"),
        ({"token_ids": ((1,), (5,) * 61)}, ContextLengthExceeded, "input", r"input\[1\] has 61 tokens"),
        ({"token_ids": ((94,),)}, InvalidRequest, "input", r"input\[0\] has token ids outside .* of 94"),
        ({"token_ids": ((-1,),)}, InvalidRequest, "input", "outside"),
        ({"token_ids": ((10**30,),)}, InvalidRequest, "input", "outside"),
        ({"texts": ("w1",) * 2049}, InvalidRequest, "input", "2049 items; at most 2048"),
        ({"texts": ("w1",), "dimensions": 33}, InvalidRequest, "dimensions", "have 32"),
        ({"texts": ("w1",), "prompt_name": "poem"}, InvalidRequest, "prompt_name", "'query', 'document'"),
        ({"texts": ("w1",), "prompt_name": "query", "input_type": "query"}, InvalidRequest, "input_type", "not both"),
        ({"token_ids": ((5,),), "prompt_name": "query"}, InvalidRequest, "prompt_name", "before token ids"),
        ({"texts": ("w1",), "truncate_tokens": 2}, InvalidRequest, "truncate_prompt_tokens", "above 2"),
    ],
)
def test_bad_input_is_refused_by_name(
    fields: dict[str, Any], error: type[RequestError], param: str, says: str, bert: EmbeddingModel
) -> None:
    wanted = request(**fields)
    with pytest.raises(error, match=says) as caught:
        [s for piece in bert.split(wanted) for s in bert.prepare(wanted, piece)]
    assert caught.value.status == 400
    assert caught.value.param == param


def test_the_index_of_a_long_input_counts_from_the_start_of_the_request(bert: EmbeddingModel) -> None:
    wanted = request(texts=("w1",) * 70 + ("w1 " * 80,))
    with pytest.raises(ContextLengthExceeded, match=r"input\[70\]"):
        [s for piece in bert.split(wanted) for s in bert.prepare(wanted, piece)]


@pytest.mark.parametrize("limit", [5, -1, 10_000])
def test_truncation_keeps_the_beginning_and_the_last_special_token(limit: int, bert: EmbeddingModel) -> None:
    wanted = request(texts=("w0 w1 w2 w3 w4 " * 20, "w7"), truncate_tokens=limit)
    long, short = bert.prepare(wanted, Piece(0, 2))
    kept = 5 if limit == 5 else 60
    assert long.token_ids.tolist() == [0, *(4 + n % 5 for n in range(kept - 2)), 2]
    assert short.token_ids.tolist() == [0, 11, 2]


def test_token_ids_are_truncated_too(bert: EmbeddingModel) -> None:
    (sequence,) = bert.prepare(request(token_ids=(tuple(range(90)),), truncate_tokens=7), Piece(0, 1))
    assert sequence.token_ids.tolist() == list(range(7))


def test_a_default_prompt_goes_before_texts_that_name_none(
    bert: EmbeddingModel, bert_path: Any, load_folder: Any, encode: Any
) -> None:
    model = load_folder(bert_path, default_prompt_name="query")
    np.testing.assert_allclose(encode(model, [" w5"]), encode(bert, ["w1 w2 w5"]), atol=1e-6)
    np.testing.assert_allclose(encode(model, ["w5"], prompt_name="document"), encode(bert, ["w5"]), atol=1e-6)


@pytest.mark.parametrize("options", [{"max_seq_length": 61}, {"default_prompt_name": "poem"}])
def test_options_that_do_not_fit_the_model_are_refused(
    options: dict[str, Any], bert_path: Any, load_folder: Any
) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        load_folder(bert_path, **options)


def test_a_shorter_limit_of_the_operator_holds(bert_path: Any, load_folder: Any) -> None:
    model = load_folder(bert_path, max_seq_length=10)
    assert model.info.max_model_len == 10
    with pytest.raises(ContextLengthExceeded, match="takes 10"):
        model.prepare(request(texts=("w1 " * 9,)), Piece(0, 1))


def test_costs_and_estimates_are_in_tokens(bert: EmbeddingModel) -> None:
    wanted = request(texts=("w1 w2 w3", "w4"))
    sequences = bert.prepare(wanted, Piece(0, 2))
    assert [bert.cost(each) for each in sequences] == [Cost(units=5, min_units=5), Cost(units=3, min_units=3)]
    assert 8 / 2 <= bert.estimate_units(wanted) <= 8 * 2
    assert bert.estimate_units(request(texts=("w1 " * 10_000,))) == 60


def test_a_vector_that_is_not_finite_fails_its_own_sequence_alone(bert_path: Any, load_folder: Any) -> None:
    model = load_folder(bert_path)
    model._encoder.forward.model.get_input_embeddings().weight.data[5] = float("nan")
    sequences = [EmbeddingSequence(np.array(ids), 0) for ids in ([0, 4, 2], [0, 5, 2], [0, 6, 2])]
    outcomes = model.step([Granted(s, 3) for s in sequences])
    assert [type(outcome.error) for outcome in outcomes] == [type(None), StepFailed, type(None)]


def test_counters_grow_by_what_was_embedded(bert_path: Any, load_folder: Any, encode: Any) -> None:
    model = load_folder(bert_path)
    model.warm_up()
    assert set(model.stats().values()) == {0}
    encode(model, ["w1", "w1 w2"])
    assert model.stats() == {
        "embedding_inputs_total": 2,
        "embedding_tokens_total": 7,
        "embedding_padding_tokens_total": 1,
    }
