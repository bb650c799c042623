"""What the route of embeddings answers with, for the OpenAPI document; `wire` writes vectors byte by byte."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class EmbeddingUsage(TypedDict):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class SparseObject(TypedDict):
    """Weights of tokens; all others weigh nothing."""

    indices: list[int]
    values: list[float]


class EmbeddingObject(TypedDict):
    """The vectors of one input; base64 is little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: NotRequired[list[float] | str]
    sparse_embedding: NotRequired[SparseObject]
    multi_vector_embedding: NotRequired[list[list[float] | str]]


class EmbeddingsObject(TypedDict):
    """The answer to ``POST /v1/embeddings``."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage
