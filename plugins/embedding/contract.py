"""What a family of embeddings takes and gives, for families that other packages bring: public, as `sixfold.core` is.

``embed`` gets an `EmbeddingInput` and ends with an `EmbeddingOutput`; its usage counts ``prompt_tokens``. ``rerank`` and
``score`` get a `ScoreInput` and end with a `ScoreOutput`. A model whose `ModelInfo.details` have ``images`` set gets items.
What a model can't honour it must refuse: `plain_texts` and `plain_pairs` do that for models of plain texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sixfold.core.errors import InvalidRequest
from sixfold.core.refusal import refuse_others
from sixfold.plugins.embedding.rerank.schema import ScoreInput, ScoreOutput
from sixfold.plugins.embedding.schema import EmbeddingInput, EmbeddingOutput, ImageItem, SparseVector, TextItem

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "EmbeddingInput",
    "EmbeddingOutput",
    "ImageItem",
    "ScoreInput",
    "ScoreOutput",
    "SparseVector",
    "TextItem",
    "dense_output",
    "plain_pairs",
    "plain_texts",
]

_MIN_NORM = 1e-12
_PARAMS = {"truncate_tokens": "truncate_prompt_tokens", "max_document_tokens": "max_tokens_per_doc"}


def plain_texts(wanted: EmbeddingInput) -> tuple[str, ...]:
    """The texts of a request to a model that makes one vector of a text, and knows neither tokens nor prompts.

    Queries and documents are the same to it (``input_type``), and leading dimensions can be had by `dense_output`.

    Raises:
        InvalidRequest: It asks for anything else.
    """
    if wanted.token_ids or wanted.items:
        raise InvalidRequest("This model embeds texts, neither token ids nor images.", param="input")
    refuse_others(wanted, {"texts", "input_type", "dimensions"}, params=_PARAMS)
    return wanted.texts


def plain_pairs(wanted: ScoreInput) -> tuple[tuple[str, str], ...]:
    """Query and document of each score that a request asks of a model that knows no tokens, and has scores of one kind.

    Its scores are raw as they are (``raw_scores``), and are no similarity of vectors (``by_similarity``).

    Raises:
        InvalidRequest: It asks for anything else.
    """
    names = {"queries", "documents", "query_field", "documents_field"}
    refuse_others(wanted, {*names, "raw_scores", "by_similarity"}, params=_PARAMS)
    return tuple((wanted.query_of(index), document) for index, document in enumerate(wanted.documents))


def dense_output(rows: Sequence[ArrayLike], wanted: EmbeddingInput) -> EmbeddingOutput:
    """The answer of one vector for each input, cut to the wanted dimensions, which are then made as long as before.

    Args:
        rows: [inputs, dimension], in order.
        wanted: The request.

    Raises:
        InvalidRequest: It wants more dimensions than there are.
    """
    import numpy as np  # not where the module of a plugin is loaded

    table = np.asarray(rows, np.float32)
    if wanted.dimensions is not None:
        if wanted.dimensions > table.shape[1]:
            raise InvalidRequest(f"dimensions is at most {table.shape[1]} for this model.", param="dimensions")
        lengths = np.linalg.norm(table, axis=1, keepdims=True)
        table = table[:, : wanted.dimensions]
        table = table * (lengths / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), _MIN_NORM))
    return EmbeddingOutput(vectors=table.astype("<f4").tobytes(), dimension=table.shape[1])
