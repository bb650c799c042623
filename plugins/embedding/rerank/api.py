"""The HTTP face of relevance: Cohere's, Jina's and text-embeddings-inference's rerank, and vLLM's score."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from starlette.responses import Response

from sixfold.core.errors import InvalidRequest, ModelNotFound
from sixfold.core.serving.api import Call, Route, ServedModel
from sixfold.plugins.embedding.rerank.answers import (
    Document,
    RerankAnswer,
    RerankResult,
    ScoreItem,
    ScoresObject,
    TeiResult,
)
from sixfold.plugins.embedding.rerank.schema import RerankBody, ScoreBody, ScoreOutput


def routes() -> Sequence[Route]:
    """The four routes."""
    return (
        Route(path="/v1/rerank", endpoint=rerank, body=RerankBody, answer=RerankAnswer, in_batches=True),
        Route(path="/v2/rerank", endpoint=rerank_v2, body=RerankBody, answer=RerankAnswer, in_batches=True),
        Route(path="/rerank", endpoint=rerank, body=RerankBody, answer=RerankAnswer, in_batches=True),
        Route(path="/v1/score", endpoint=score, body=ScoreBody, answer=ScoresObject, in_batches=True),
    )


async def rerank(call: Call) -> Response:
    """``POST /v1/rerank`` and ``/rerank``: orders documents by how much they say about a query.

    Raises:
        RequestError: The body is wrong, the model does not rerank, or the request did not succeed.
    """
    return await _rerank(call, api_version="1")


async def rerank_v2(call: Call) -> Response:
    """``POST /v2/rerank``: the same, as Cohere's second version names it."""
    return await _rerank(call, api_version="2")


async def score(call: Call) -> Response:
    """``POST /v1/score``: a score for each pair, in the order of the pairs.

    Raises:
        RequestError: The body is wrong, the model does not score, or the request did not succeed.
    """
    body = await call.json(ScoreBody)
    model = await call.model(body.model, "score")
    _check_similarity(model, body.rerank_by_similarity)
    finished = await call.run(model, body.request_input())
    output: ScoreOutput = finished.result
    return call.respond(
        {
            "id": f"score-{call.request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": model.name,
            "data": [ScoreItem(index=index, score=value) for index, value in enumerate(output.scores)],
            "usage": _usage(finished.usage.counts["prompt_tokens"]),
        }
    )


async def _rerank(call: Call, *, api_version: str) -> Response:
    body = await call.json(RerankBody)
    model = await call.model(body.model, "rerank") if body.model is not None else await _only_model(call)
    _check_similarity(model, body.rerank_by_similarity)
    finished = await call.run(model, body.request_input())
    output: ScoreOutput = finished.result
    ranked = sorted(enumerate(output.scores), key=lambda item: -item[1])[: body.top_n]
    texts = body.contents
    if body.texts is not None:
        shown = body.return_text
        found = [TeiResult(index=i, score=value, text=texts[i] if shown else None) for i, value in ranked]
        return call.respond(msgspec.json.encode(found))
    shown = body.return_documents
    num_tokens = finished.usage.counts["prompt_tokens"]
    return call.respond(
        {
            "id": f"rerank-{call.request_id}",
            "model": model.name,
            "results": [
                RerankResult(index=i, relevance_score=value, document=Document(texts[i]) if shown else None)
                for i, value in ranked
            ],
            "usage": _usage(num_tokens),
            "meta": {"api_version": {"version": api_version}, "tokens": {"input_tokens": num_tokens}},
        }
    )


def _usage(num_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


async def _only_model(call: Call) -> ServedModel:
    models = [model for model in call.models("rerank") if model.info.details.get("reranks", True)]
    if len(models) != 1:
        names = ", ".join(model.name for model in models) or "none"
        raise InvalidRequest(f"Missing required parameter 'model'. Models that rerank: {names}.", param="model")
    return await call.model(models[0].name, "rerank")


def _check_similarity(model: ServedModel, asked: bool | None) -> None:
    """An embedding model only answers if its operator or the request says that vectors' similarity will do."""
    reranks = bool(model.info.details.get("reranks", True))
    if not (reranks if asked is None else asked or reranks):
        raise ModelNotFound(
            f"The model {model.name!r} is an embedding model. Use a cross-encoder, send rerank_by_similarity: true to rank "
            "by the similarity of its vectors, or set this option of the model.",
            param="model",
        )
