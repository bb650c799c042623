"""What the conformance kit asks of embedding models."""

from __future__ import annotations

from typing import Any

from sixfold.core.probe import Fields, Probe

_BY_SIMILARITY: Fields = {"rerank_by_similarity": True}
"""Embedding models want to be told that their vectors' similarity will do; cross-encoders don't mind."""


def _texts(number: int) -> list[str]:
    return [f"The number {number} of a few short texts.", "Another text. " * (number + 1)]


def _scores(answer: Any) -> object:
    """In the order of the documents: those of near-equal scores may change places."""
    results = sorted(answer["results"], key=lambda result: result["index"])
    return [result["relevance_score"] for result in results]


PROBES = (
    Probe(
        operation="embed",
        path="/v1/embeddings",
        make_body=lambda model, number: {"model": model, "input": [*_texts(number)]},
        content=lambda answer: [row["embedding"] for row in answer["data"]],
    ),
    Probe(
        operation="rerank",
        path="/v1/rerank",
        make_body=lambda model, number: {
            "model": model,
            "query": "Which number?",
            "documents": [*_texts(number)],
            **_BY_SIMILARITY,
        },
        content=_scores,
    ),
    Probe(
        operation="score",
        path="/v1/score",
        make_body=lambda model, number: {
            "model": model,
            "text_1": "Which number?",
            "text_2": [*_texts(number)],
            **_BY_SIMILARITY,
        },
        content=lambda answer: [row["score"] for row in answer["data"]],
    ),
)
