"""Bodies and answers of ``/v1/embeddings``: what is accepted, what is refused, and that no bit of a vector is lost."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from pydantic import ValidationError

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.embedding.schema import (
    EmbeddingInput,
    EmbeddingOutput,
    EmbeddingsBody,
    ImageItem,
    SparseVector,
    TextItem,
)
from sixfold.plugins.embedding.wire import response_body


def body(**fields: Any) -> EmbeddingsBody:
    return EmbeddingsBody.model_validate_json(json.dumps({"model": "m", "input": "a", **fields}))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("a", EmbeddingInput(texts=("a",))),
        (["a", " "], EmbeddingInput(texts=("a", " "))),
        ([1, 2], EmbeddingInput(token_ids=((1, 2),))),
        ([[1, 2], [3]], EmbeddingInput(token_ids=((1, 2), (3,)))),
    ],
)
def test_all_four_forms_of_input_are_accepted(sent: Any, expected: EmbeddingInput) -> None:
    assert body(input=sent).request_input() == expected


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ("", r"\[0\] must not be empty"),
        ([], "must not be empty"),
        (["a", ""], r"\[1\] must not be empty"),
        ([[1], []], r"\[1\] must not be empty"),
        ([1, "a"], r"\[1\] must be"),
        ([True], r"\[0\] must be"),
        ([[1], [1.5]], r"\[1\] must hold integer"),
        (None, "must be a string"),
        ({"text": ""}, r"\[0\] must not be empty"),
        ({"texts": "a"}, r"\[0\] must be a text"),
        ([{"text": "a"}, 7], r"\[1\] must be a text"),
        ([{"text": "a", "image": "b"}], r"\[0\] must be a text"),
        ([{"image": 5}], r"\[0\] must be a text"),
        ([{"image": ""}], r"\[0\] must not be empty"),
        ([{"type": "image_url", "image_url": {"href": "x"}}], r"\[0\] must be a text"),
        ([{"type": "audio_url", "audio_url": {"url": "x"}}], r"\[0\] must be a text"),
    ],
)
def test_any_other_input_is_refused_with_its_index(sent: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        body(input=sent)
    assert [error["loc"] for error in caught.value.errors()] == [("input",)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoding_format", "int8"),
        ("dimensions", 0),
        ("dimensions", "8"),
        ("input_type", "poem"),
        ("truncate_prompt_tokens", -2),
        ("model", 3),
        ("normalise", True),
    ],
)
def test_wrong_values_and_unknown_fields_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        body(**{field: value})
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]


def test_every_field_reaches_the_request() -> None:
    sent = body(dimensions=8, prompt_name="q", truncate_prompt_tokens=-1, user="u", encoding_format="base64")
    assert sent.request_input() == EmbeddingInput(texts=("a",), dimensions=8, prompt_name="q", truncate_tokens=-1)
    assert body(input_type="query").request_input().input_type == "query"


def test_inputs_and_outputs_cross_a_process_border() -> None:
    for sent in (EmbeddingInput(texts=("ä",), dimensions=3), EmbeddingInput(token_ids=((1, 2), (3,)))):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=EmbeddingInput) == sent


def test_texts_as_objects_are_plain_texts() -> None:
    sent = body(input=[{"text": "a"}, "b", {"type": "text", "text": "c"}]).request_input()
    assert sent == EmbeddingInput(texts=("a", "b", "c"))


def test_images_come_in_the_forms_of_jina_and_openai() -> None:
    images = [{"image": "QQ=="}, {"type": "image_url", "image_url": {"url": "http://x/a", "detail": "low"}}, "text"]
    sent = body(input=images).request_input()
    assert sent.items == (ImageItem(encoded="QQ=="), ImageItem(encoded="http://x/a"), TextItem(text="text"))
    assert [item.is_remote for item in sent.items if isinstance(item, ImageItem)] == [False, True]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=EmbeddingInput) == sent


@pytest.mark.parametrize(
    "content", ["a", [{"type": "text", "text": "a"}], [{"type": "image_url", "image_url": {"url": "data:"}}]]
)
def test_one_message_is_one_input(content: Any) -> None:
    sent = EmbeddingsBody(model="m", messages=[{"role": "user", "content": content}]).request_input()  # type: ignore[arg-type]  # as clients send it
    assert sent.num_inputs == 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": [{"role": "user", "content": ["a", "b"]}]}, "has 2 parts"),
        ({"messages": [{"role": "user"}]}, "role and content"),
        ({"messages": []}, "list of one message"),
        ({"input": "a", "output_types": []}, "at least 1 item"),
        ({"input": "a", "output_types": ["poem"]}, "'dense', 'sparse' or 'multi_vector'"),
    ],
)
def test_wrong_forms_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        EmbeddingsBody(model="m", **fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"messages": [{"role": "user", "content": "a"}], "input": "b"}, "messages"),
        ({"input": "a", "output_types": ["dense", "dense"]}, "output_types"),
    ],
)
def test_fields_that_do_not_go_together_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EmbeddingsBody(model="m", **fields)
    assert caught.value.param == param


def test_other_vectors_are_written_beside_the_dense_one() -> None:
    output = EmbeddingOutput(
        vectors=np.array([[0.5]], "<f4").tobytes(),
        dimension=1,
        sparse=(SparseVector(indices=np.array([3, 9], "<i4").tobytes(), values=np.array([0.1, 2], "<f4").tobytes()),),
        multi_vectors=(np.array([[1, 0], [0.25, 0.5]], "<f4").tobytes(),),
        multi_dimension=2,
    )
    (row,) = json.loads(response_body(output, model="m", encoding="float", num_tokens=1))["data"]
    assert row == {
        "object": "embedding",
        "index": 0,
        "embedding": [0.5],
        "sparse_embedding": {"indices": [3, 9], "values": [0.1, 2.0]},
        "multi_vector_embedding": [[1.0, 0.0], [0.25, 0.5]],
    }
    (row,) = json.loads(response_body(output, model="m", encoding="base64", num_tokens=1))["data"]
    assert row["multi_vector_embedding"] == ["AACAPwAAAAA=", "AACAPgAAAD8="]


def test_the_openapi_document_shows_the_five_forms() -> None:
    assert len(EmbeddingsBody.model_json_schema()["properties"]["input"]["anyOf"]) == 5


VECTORS = np_st.arrays(np.float32, (3, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


@given(VECTORS)
def test_float_answers_read_back_as_the_same_float32(vectors: Any) -> None:
    output = EmbeddingOutput(vectors=vectors.tobytes(), dimension=4)
    answer = json.loads(response_body(output, model='a"b', encoding="float", num_tokens=7))
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    np.testing.assert_array_equal(np.array([item["embedding"] for item in answer["data"]], dtype=np.float32), vectors)
    assert answer["model"] == 'a"b'
    assert answer["object"] == "list"
    assert answer["data"][0]["object"] == "embedding"
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


@given(VECTORS)
def test_base64_answers_are_the_bytes_of_the_vectors(vectors: Any) -> None:
    output = EmbeddingOutput(vectors=vectors.tobytes(), dimension=4)
    answer = json.loads(response_body(output, model="m", encoding="base64", num_tokens=1))
    decoded = b"".join(base64.b64decode(item["embedding"]) for item in answer["data"])
    assert decoded == vectors.tobytes()


def test_float_texts_have_at_most_nine_digits() -> None:
    values = np.random.default_rng(0).normal(size=(50, 100)).astype("<f4") / np.float32(20)
    output = EmbeddingOutput(vectors=values.tobytes(), dimension=100)
    body = response_body(output, model="m", encoding="float", num_tokens=1).decode()
    texts = json.loads(body, parse_float=str)["data"]
    for text in (text for item in texts for text in item["embedding"]):
        assert len(text.partition("e")[0].replace("-", "").replace(".", "").strip("0")) <= 9
