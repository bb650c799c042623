"""Rerank and score over HTTP: the demo's embedding model by similarity, a tiny cross-encoder, and real clients."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from sixfold.core.config import load_config
from sixfold.core.plugins import load_plugins
from sixfold.core.registry import resolve_entry
from tests.e2e.conftest import demo_config
from tests.plugins.embedding import clip_models, rerank_models
from tests.servers import DemoServer, start_server, stop_server

pytestmark = pytest.mark.models

QUERY = "Which drug must this patient not get?"
DOCUMENTS = [
    "The weather in Lisbon was mild and dry all week.",
    "The patient is allergic to penicillin and must not receive it.",
    "Our canteen serves soup on Mondays.",
    "Blood pressure was measured twice, in the morning and at night.",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    """The demo's embedding model with the option on, a tiny cross-encoder and a tiny CLIP."""
    folder = tmp_path_factory.mktemp("rerank")
    cross_encoder = rerank_models.save_classifier(tmp_path_factory.mktemp("cross"))
    clip = clip_models.save_dual_encoder(tmp_path_factory.mktemp("clip"))

    def change(data: dict[str, Any]) -> None:
        embed = data["models"]["embed"]
        data["models"] = {
            "embed": {**embed, "options": {"rerank_by_similarity": True}},
            "cross": {"source": f"file:{cross_encoder}"},
            "clip": {"source": f"file:{clip}"},
        }

    path = demo_config(folder, change)
    (folder / "cross.txt").write_text(str(cross_encoder))
    running = start_server(path)
    try:
        yield running
    finally:
        assert stop_server(running) == 0


@pytest.fixture(scope="module")
def minilm(server: DemoServer) -> Any:
    """The library's own model of the demo's files."""
    settings = load_config(server.config)
    resolved = resolve_entry(settings.models["embed"], load_plugins(), settings.cache_dir, lambda _w, _d, _t: None)
    return SentenceTransformer(str(resolved.path), device="cpu")


def post(server: DemoServer, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60)


def test_minilm_finds_the_relevant_document(server: DemoServer, minilm: Any) -> None:
    answer = post(server, "/v1/rerank", model="embed", query=QUERY, documents=DOCUMENTS, top_n=3).json()
    expected = minilm.similarity(minilm.encode([QUERY]), minilm.encode(DOCUMENTS))[0].tolist()
    assert [result["index"] for result in answer["results"]] == sorted(range(4), key=lambda i: -expected[i])[:3]
    assert answer["results"][0]["index"] == 1
    for result in answer["results"]:
        assert result["relevance_score"] == pytest.approx(expected[result["index"]], abs=1e-5)


@pytest.mark.parametrize(("client", "version"), [("Client", "1"), ("ClientV2", "2")])
def test_coheres_clients_read_the_answers(client: str, version: str, server: DemoServer) -> None:
    cohere = pytest.importorskip("cohere")
    with httpx.Client() as connection:  # its own is never closed
        speaks = getattr(cohere, client)(api_key="none", base_url=server.url, httpx_client=connection)
        answer = speaks.rerank(model="embed", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert answer.results[0].index == 1
    assert len(answer.results) == 2
    assert answer.meta.api_version.version == version


def test_jinas_body_as_llama_index_and_open_webui_send_it(server: DemoServer) -> None:
    answer = post(server, "/rerank", model="embed", query=QUERY, documents=DOCUMENTS, top_n=2).json()
    assert [set(result) for result in answer["results"]] == [{"index", "relevance_score"}] * 2
    assert answer["results"][0]["index"] == 1


def test_eight_mixed_requests_equal_each_alone_with_a_cancel_and_a_poisoned_one(server: DemoServer) -> None:
    random = np.random.default_rng(5)
    image = base64.b64encode(clip_models.file_of(clip_models.picture(3))).decode()
    texts = [rerank_models.random_text(random, count) for count in (3, 20, 40, 1, 9, 31)]
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/rerank", {"model": "cross", "query": "w1 w2", "documents": texts}),
        ("/v2/rerank", {"model": "cross", "query": "w7", "documents": texts[::-1], "top_n": 2}),
        ("/v1/score", {"model": "cross", "text_1": texts, "text_2": texts[::-1], "truncate_prompt_tokens": -1}),
        ("/v1/rerank", {"model": "embed", "query": QUERY, "documents": DOCUMENTS}),
        ("/v1/score", {"model": "embed", "text_1": QUERY, "text_2": DOCUMENTS}),
        ("/v1/embeddings", {"model": "embed", "input": DOCUMENTS}),
        ("/v1/embeddings", {"model": "clip", "input": [{"image": image}, {"text": "w1 w2"}]}),
        ("/v1/embeddings", {"model": "clip", "input": texts[0]}),
    ]
    poisoned = ("/v1/embeddings", {"model": "clip", "input": [{"image": image[:80]}, "w1"]})
    long = {"model": "cross", "query": "w1", "documents": ["w1 w2 w3"] * 2000}

    async def one(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
        return await client.post(path, json=body)

    async def all_at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            cancelled = asyncio.ensure_future(one(client, "/v1/rerank", long))
            running = [asyncio.ensure_future(one(client, path, body)) for path, body in (*requests, poisoned)]
            await running[3]
            cancelled.cancel()
            return await asyncio.gather(*running)

    *together, refused = asyncio.run(all_at_once())
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "input[0].image"
    for (path, body), answer in zip(requests, together, strict=True):
        assert answer.status_code == 200, answer.text
        alone = post(server, path, **body)
        np.testing.assert_allclose(numbers(answer.json()), numbers(alone.json()), atol=1e-5)


def numbers(answer: dict[str, Any]) -> list[float]:
    """All scores and vectors of an answer, in order."""
    found: list[float] = []
    for item in answer.get("results") or answer["data"]:
        found += item["embedding"] if "embedding" in item else [item.get("relevance_score", item.get("score"))]
    return found


def test_a_cross_encoder_equals_the_library_over_http(server: DemoServer) -> None:
    path = (server.config.parent / "cross.txt").read_text()
    random = np.random.default_rng(5)
    texts = [rerank_models.random_text(random, count) for count in (3, 20, 40, 1, 9, 31)]
    answer = post(server, "/v1/score", model="cross", text_1="w1 w2", text_2=texts).json()
    library: Any = CrossEncoder(path, device="cpu")
    expected = library.predict([("w1 w2", text) for text in texts])
    np.testing.assert_allclose(numbers(answer), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"model": "cross", "query": "q", "documents": []}, "documents"),
        ("/v1/rerank", {"model": "cross", "query": "q", "documents": ["w1 " * 90]}, "documents"),
        ("/v1/rerank", {"model": "cross", "query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ("/v1/embeddings", {"model": "embed", "input": [{"image": "AAAA"}]}, "input"),
        ("/v1/embeddings", {"model": "clip", "input": [{"image": "AAAA"}]}, "input[0].image"),
        ("/v1/embeddings", {"model": "embed", "input": "a", "output_types": ["sparse"]}, "output_types"),
    ],
)
def test_bad_input_is_a_400_that_names_it(path: str, body: dict[str, Any], param: str, server: DemoServer) -> None:
    answer = post(server, path, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
