"""The rerank and score routes, driven by a fake call: what Cohere's, Jina's, TEI's and vLLM's clients send and read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest
from starlette.responses import Response

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import InvalidRequest, ModelNotFound
from sixfold.core.family import Family
from sixfold.core.messages import Finished, Usage
from sixfold.core.serving.api import Call, Route
from sixfold.core.serving.body import parse_json
from sixfold.plugins.embedding.api import EmbeddingAPI
from sixfold.plugins.embedding.plugin import CROSS_ENCODER, FAMILY
from sixfold.plugins.embedding.rerank.schema import ScoreInput, ScoreOutput

DOCUMENTS = ["aa", "a", "aaaa", "aaa"]


@dataclass(frozen=True)
class FakeModel:
    name: str = "alias"
    family: Family = CROSS_ENCODER
    info: ModelInfo = field(default_factory=ModelInfo)


EMBEDDING_MODEL = FakeModel("vectors", FAMILY, ModelInfo(details={"reranks": False}))


class FakeCall:
    """Scores each document by its length, a tenth a character."""

    request_id = "r1"

    def __init__(self, body: dict[str, Any], *models: FakeModel) -> None:
        self._body = body
        self._models = models or (FakeModel(), EMBEDDING_MODEL)
        self.inputs: list[ScoreInput] = []

    async def json(self, schema: type[Any]) -> Any:
        return parse_json(json.dumps(self._body).encode(), schema)

    async def model(self, name: str, operation: str) -> FakeModel:
        assert operation in ("rerank", "score")
        return next(model for model in self._models if model.name == name)

    def models(self, operation: str) -> tuple[FakeModel, ...]:
        assert operation == "rerank"
        return self._models

    async def run(self, model: FakeModel, input: ScoreInput) -> Finished[Any]:
        self.inputs.append(input)
        scores = tuple(len(document) / 10 for document in input.documents)
        return Finished(request_id="r", result=ScoreOutput(scores=scores), usage=Usage(counts={"prompt_tokens": 9}))

    def respond(self, body: Any) -> Response:
        return Response(body if isinstance(body, bytes) else msgspec.json.encode(body))


async def post(path: str, call: FakeCall) -> Any:
    (route,) = (route for route in EmbeddingAPI().routes() if route.path == path)
    assert isinstance(route, Route)
    assert route.method == "POST"
    return json.loads(bytes((await route.endpoint(cast("Call", call))).body))


@pytest.mark.parametrize(("path", "version"), [("/v1/rerank", "1"), ("/rerank", "1"), ("/v2/rerank", "2")])
async def test_the_most_relevant_documents_come_first(path: str, version: str) -> None:
    call = FakeCall({"model": "alias", "query": "q", "documents": DOCUMENTS, "top_n": 3})
    assert await post(path, call) == {
        "id": "rerank-r1",
        "model": "alias",
        "results": [
            {"index": 2, "relevance_score": 0.4},
            {"index": 3, "relevance_score": 0.3},
            {"index": 0, "relevance_score": 0.2},
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
        "meta": {"api_version": {"version": version}, "tokens": {"input_tokens": 9}},
    }
    assert call.inputs == [ScoreInput(queries=("q",), documents=tuple(DOCUMENTS))]


async def test_documents_may_be_objects_and_come_back_when_asked() -> None:
    body = {"model": "alias", "query": "q", "documents": [{"text": "a"}, "bb"], "return_documents": True}
    answer = await post("/v1/rerank", FakeCall(body))
    assert [result["document"] for result in answer["results"]] == [{"text": "bb"}, {"text": "a"}]


async def test_equal_scores_keep_the_order_of_the_documents() -> None:
    answer = await post("/v1/rerank", FakeCall({"model": "alias", "query": "q", "documents": ["a", "b", "c"]}))
    assert [result["index"] for result in answer["results"]] == [0, 1, 2]


async def test_more_results_than_documents_are_all() -> None:
    body = {"model": "alias", "query": "q", "documents": ["a"], "top_n": 9}
    assert len((await post("/v2/rerank", FakeCall(body)))["results"]) == 1


async def test_teis_form_needs_no_model_and_gives_a_bare_list() -> None:
    call = FakeCall({"query": "q", "texts": DOCUMENTS[:2], "return_text": True, "truncate": True, "raw_scores": True})
    assert await post("/rerank", call) == [
        {"index": 0, "score": 0.2, "text": "aa"},
        {"index": 1, "score": 0.1, "text": "a"},
    ]
    (wanted,) = call.inputs
    assert (wanted.truncate_tokens, wanted.raw_scores, wanted.documents_field) == (-1, True, "texts")


async def test_without_a_model_there_must_be_one_alone() -> None:
    body = {"query": "q", "texts": ["a"]}
    with pytest.raises(InvalidRequest, match="Models that rerank: one, two") as caught:
        await post("/rerank", FakeCall(body, FakeModel("one"), FakeModel("two"), EMBEDDING_MODEL))
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("body", "queries", "documents"),
    [
        ({"text_1": "q", "text_2": "a"}, ("q",), ("a",)),
        ({"text_1": "q", "text_2": ["a", "bb"]}, ("q",), ("a", "bb")),
        ({"text_1": ["q"], "text_2": ["a", "bb"]}, ("q",), ("a", "bb")),
        ({"text_1": ["q", "r"], "text_2": ["a", "bb"]}, ("q", "r"), ("a", "bb")),
    ],
)
async def test_score_pairs_texts_as_vllm_does(
    body: dict[str, Any], queries: tuple[str, ...], documents: tuple[str, ...]
) -> None:
    call = FakeCall({"model": "alias", **body})
    answer = await post("/v1/score", call)
    assert (call.inputs[0].queries, call.inputs[0].documents) == (queries, documents)
    assert answer["object"] == "list"
    assert answer["usage"]["prompt_tokens"] == 9
    assert answer["data"] == [
        {"index": index, "object": "score", "score": len(document) / 10} for index, document in enumerate(documents)
    ]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"query": "q", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "q", "documents": ["a", ""]}, "documents.1"),
        ("/v1/rerank", {"query": "q", "documents": ["a", {"text": ""}]}, "documents.1.text"),
        ("/v1/rerank", {"query": "q", "documents": ["a", {"title": "t"}]}, "documents.1.text"),
        ("/v1/rerank", {"query": "q", "documents": ["a", 7]}, "documents.1"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
        ("/v2/rerank", {"query": "q", "documents": ["a"], "max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "rank_fields": ["title"]}, "rank_fields.0"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "max_chunks_per_doc": 4}, "max_chunks_per_doc"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "unknown": 1}, "unknown"),
        ("/v1/rerank", {"query": "q"}, "documents"),
        ("/rerank", {"query": "q", "documents": ["a"], "texts": ["a"]}, "texts"),
        ("/rerank", {"query": "q", "texts": [], "model": "alias"}, "texts"),
        ("/v1/score", {"text_1": ["q", "r"], "text_2": ["a"]}, "text_1"),
        ("/rerank", {"query": "q", "texts": ["a"], "truncate": True, "truncate_prompt_tokens": 9}, "truncate"),
        ("/v1/score", {"text_1": "q", "text_2": []}, "text_2"),
        ("/v1/score", {"text_1": "", "text_2": "a"}, "text_1"),
        ("/v1/score", {"text_1": "q"}, "text_2"),
    ],
)
async def test_bad_bodies_are_refused_by_name(path: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await post(path, FakeCall({"model": "alias", **body}))
    assert caught.value.status == 400
    assert caught.value.param == param


async def test_an_embedding_model_reranks_only_when_asked() -> None:
    body = {"model": "vectors", "query": "q", "documents": ["a"]}
    with pytest.raises(ModelNotFound, match="rerank_by_similarity"):
        await post("/v1/rerank", FakeCall(body))
    asked = FakeCall({**body, "rerank_by_similarity": True})
    assert len((await post("/v1/rerank", asked))["results"]) == 1
    with pytest.raises(ModelNotFound):
        await post("/v1/score", FakeCall({"model": "vectors", "text_1": "q", "text_2": "a"}))
