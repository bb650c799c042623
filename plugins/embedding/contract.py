"""What a family of embeddings takes and gives, for families that other packages bring: public, as `sixfold.core` is.

``embed`` gets an `EmbeddingInput` and ends with an `EmbeddingOutput`; its usage counts ``prompt_tokens``. ``rerank`` and
``score`` get a `ScoreInput` and end with a `ScoreOutput`. A model whose `ModelInfo.details` have ``images`` set gets items.
What a model can't honour it must refuse: `plain_texts` does that for models of plain texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.embedding.rerank.schema import ScoreInput, ScoreOutput
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput, ImageItem, SparseVector, TextItem

__all__ = [
    "EmbeddingInput",
    "EmbeddingOutput",
    "ImageItem",
    "ScoreInput",
    "ScoreOutput",
    "SparseVector",
    "TextItem",
    "dense_output",
    "plain_texts",
]

_MIN_NORM = 1e-12


def plain_texts(wanted: EmbeddingInput) -> tuple[str, ...]:
    """The texts of a request to a model that makes one vector of a text, and knows neither tokens nor prompts.

    Raises:
        InvalidRequest: It asks for anything else.
    """
    refused = {
        "input": bool(wanted.token_ids or wanted.items),
        "prompt_name": wanted.prompt_name is not None,
        "truncate_prompt_tokens": wanted.truncate_tokens is not None,
        "output_types": wanted.output_types != ("dense",),
    }
    for param, is_refused in refused.items():
        if is_refused:
            raise InvalidRequest(f"This model takes texts and makes one vector of each: change {param!r}.", param=param)
    return wanted.texts


def dense_output(rows: Sequence[NDArray[np.float32]], wanted: EmbeddingInput) -> EmbeddingOutput:
    """The answer of one vector for each input, cut to the wanted dimensions, which are then made as long as before.

    Args:
        rows: [inputs, dimension], in order.
        wanted: The request.

    Raises:
        InvalidRequest: It wants more dimensions than there are.
    """
    table = np.asarray(rows, np.float32)
    if wanted.dimensions is not None:
        if wanted.dimensions > table.shape[1]:
            raise InvalidRequest(f"dimensions is at most {table.shape[1]} for this model.", param="dimensions")
        lengths = np.linalg.norm(table, axis=1, keepdims=True)
        table = table[:, : wanted.dimensions]
        table = table * (lengths / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), _MIN_NORM))
    return EmbeddingOutput(vectors=table.astype("<f4").tobytes(), dimension=table.shape[1])
