"""The state of one input between `prepare` and `finish`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sixfold.plugins.embedding.encoder import Outputs
from sixfold.plugins.embedding.packing import TokenIds
from sixfold.plugins.embedding.schema import OutputType

DENSE: tuple[OutputType, ...] = ("dense",)
"""What most requests want."""
_NOTHING = Outputs()


class EmbeddingSequence:
    """One input. Written by `EmbeddingModel` alone: by `prepare` in the pool, then by `step` in the device thread.

    Attributes:
        token_ids: Never empty.
        num_prompt_tokens: First tokens that pooling leaves out.
        wanted: What to make of it.
        is_query: Whether it is a query to models that tell queries from documents.
        vector: [dimension] after its step, if a dense vector alone is wanted.
        outputs: What is wanted otherwise, after its step.
        is_flying: Whether a GPU computes it at this moment, see `flights`.
    """

    __slots__ = ("is_flying", "is_query", "num_prompt_tokens", "outputs", "token_ids", "vector", "wanted")

    def __init__(
        self,
        token_ids: TokenIds,
        num_prompt_tokens: int,
        wanted: tuple[OutputType, ...] = DENSE,
        is_query: bool = False,
    ) -> None:
        self.token_ids = token_ids
        self.num_prompt_tokens = num_prompt_tokens
        self.wanted = wanted
        self.is_query = is_query
        self.vector: NDArray[np.float32] | None = None
        self.outputs = _NOTHING
        self.is_flying = False


def texts_of(sequences: Sequence[EmbeddingSequence]) -> tuple[list[TokenIds], list[int]]:
    """Token ids and numbers of prompt tokens, as `Encoder.embed` takes them."""
    return [sequence.token_ids for sequence in sequences], [sequence.num_prompt_tokens for sequence in sequences]
