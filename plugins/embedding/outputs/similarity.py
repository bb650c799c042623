"""Compares texts by sentence-transformers' similarity functions; higher is nearer for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sixfold.plugins.embedding.encoder import Outputs
from sixfold.plugins.embedding.outputs.heads import Sparse

Vectors = NDArray[np.float32]


def _cosine(queries: Vectors, documents: Vectors) -> Vectors:
    return _dot(_normalized(queries), _normalized(documents))


def _normalized(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return found


def _dot(queries: Vectors, documents: Vectors) -> Vectors:
    found: Vectors = (queries * documents).sum(axis=1)
    return found


def _euclidean(queries: Vectors, documents: Vectors) -> Vectors:
    found: Vectors = -np.linalg.norm(queries - documents, axis=1)
    return found


def _manhattan(queries: Vectors, documents: Vectors) -> Vectors:
    found: Vectors = -np.abs(queries - documents).sum(axis=1)
    return found


SIMILARITY: Mapping[str, Callable[[Vectors, Vectors], Vectors]] = {
    "cosine": _cosine,
    "dot": _dot,
    "euclidean": _euclidean,
    "manhattan": _manhattan,
}
"""Each takes queries [rows, dim] (or one query [1, dim] for all) and documents [rows, dim], and gives [rows]."""


def max_similarities(query: Vectors, document: Vectors) -> float:
    """Late interaction: for each token vector of the query the greatest dot product with the document's, summed."""
    if not len(query) or not len(document):
        return 0.0
    return float((query @ document.T).max(axis=1).sum())


def sparse_similarity(name: str, query: Sparse, document: Sparse) -> float:
    """The dot product or the cosine of two sparse vectors."""
    _, mine, theirs = np.intersect1d(query.indices, document.indices, assume_unique=True, return_indices=True)
    product = float(query.values[mine] @ document.values[theirs])
    if name == "cosine":
        product /= max(float(np.linalg.norm(query.values) * np.linalg.norm(document.values)), 1e-12)
    return product


def pair_scores(name: str, queries: Sequence[Outputs], documents: Sequence[Outputs]) -> tuple[float, ...]:
    """A score for each document.

    Args:
        name: The model's similarity function.
        queries: One for all documents, or one for each; all of one kind of vector.
        documents: Likewise.
    """
    pairs = [(queries[index if len(queries) > 1 else 0], document) for index, document in enumerate(documents)]
    if documents[0].dense is not None:
        dense = [(a.dense, b.dense) for a, b in pairs if a.dense is not None and b.dense is not None]
        scores = SIMILARITY[name](np.stack([a for a, _ in dense]), np.stack([b for _, b in dense]))
        return tuple(scores.tolist())
    if documents[0].sparse is not None:
        return tuple(
            sparse_similarity(name, a.sparse, b.sparse)
            for a, b in pairs
            if a.sparse is not None and b.sparse is not None
        )
    return tuple(
        max_similarities(a.multi_vector, b.multi_vector)
        for a, b in pairs
        if a.multi_vector is not None and b.multi_vector is not None
    )
