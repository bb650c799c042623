"""What the routes of reranking and scoring answer with."""

from __future__ import annotations

from typing import Literal, TypedDict

import msgspec

from sixfold.plugins.embedding.answers import EmbeddingUsage


class Document(msgspec.Struct, frozen=True):
    """A document as the answer repeats it."""

    text: str


class RerankResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One document's relevance."""

    index: int
    relevance_score: float
    document: Document | None = None


class TeiResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One text's relevance in the form of text-embeddings-inference."""

    index: int
    score: float
    text: str | None = None


class ScoreItem(msgspec.Struct, frozen=True, kw_only=True):
    """One pair's score in vLLM's form."""

    index: int
    object: str = "score"
    score: float


class ScoresObject(TypedDict):
    """The answer to ``POST /v1/score``."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoreItem]
    usage: EmbeddingUsage


class ApiVersion(TypedDict):
    """Of Cohere's API, which an answer looks like."""

    version: str


class ReadTokens(TypedDict):
    """Tokens that were read."""

    input_tokens: int


class RerankMeta(TypedDict):
    """What Cohere's clients read."""

    api_version: ApiVersion
    tokens: ReadTokens


class RerankObject(TypedDict):
    """The answer to the routes of reranking."""

    id: str
    model: str
    results: list[RerankResult]
    usage: EmbeddingUsage
    meta: RerankMeta


RerankAnswer = RerankObject | list[TeiResult]
"""A list for those who ask as text-embeddings-inference does, with ``texts``."""
