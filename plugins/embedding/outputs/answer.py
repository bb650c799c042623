"""Makes the message that crosses the process border of what was made of each input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sixfold.plugins.embedding.encoder import Outputs
from sixfold.plugins.embedding.schema import EmbeddingOutput, SparseVector


def as_output(outputs: Sequence[Outputs], *, dimensions: int | None, normalizes: bool) -> EmbeddingOutput:
    """Joins what all inputs have; each has the same kinds.

    Args:
        outputs: In the order of the inputs; at least one.
        dimensions: Leading values to keep of dense vectors; None for all.
        normalizes: Whether cut vectors are scaled to length 1 again.
    """
    dense = [each.dense for each in outputs if each.dense is not None]
    vectors = np.stack(dense) if dense else np.empty((0, 0), dtype=np.float32)
    if dimensions is not None and dimensions < vectors.shape[1]:
        vectors = vectors[:, :dimensions]
        if normalizes:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    multi = [each.multi_vector for each in outputs if each.multi_vector is not None]
    return EmbeddingOutput(
        vectors=np.ascontiguousarray(vectors, dtype="<f4").tobytes(),
        dimension=vectors.shape[1],
        sparse=tuple(
            SparseVector(
                indices=each.sparse.indices.astype("<i4").tobytes(), values=each.sparse.values.astype("<f4").tobytes()
            )
            for each in outputs
            if each.sparse is not None
        ),
        multi_vectors=tuple(np.ascontiguousarray(rows, dtype="<f4").tobytes() for rows in multi),
        multi_dimension=multi[0].shape[1] if multi else 0,
    )
