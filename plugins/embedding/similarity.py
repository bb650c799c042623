"""Compares vectors by sentence-transformers' similarity functions; higher is nearer for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def _cosine(queries: Vectors, documents: Vectors) -> Vectors:
    return _dot(_normalized(queries), _normalized(documents))


def _normalized(vectors: Vectors) -> Vectors:
    lengths: Vectors = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Vectors = vectors / np.maximum(lengths, 1e-12)
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
