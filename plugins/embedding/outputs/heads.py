"""What makes sparse vectors and token vectors of a text's hidden states, each text alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sixfold.plugins.embedding.packing import TokenIds, to_tensor
from sixfold.plugins.embedding.stand_in import StandIn

_CHUNK_TOKENS = 256  # logits over a vocabulary of 250,000 tokens take a megabyte a token


@dataclass(frozen=True, slots=True)
class Sparse:
    """Weights of the tokens ``indices`` (int32, ascending)."""

    indices: NDArray[np.int32]
    values: NDArray[np.float32]


class SparseHead(Protocol):
    """Makes weights of the vocabulary's tokens."""

    def __call__(self, hidden: Tensor, token_ids: TokenIds) -> Sparse:
        """From the hidden states [tokens, dim] of one text."""
        ...


class MultiVectorHead(Protocol):
    """Makes a vector for each token that counts."""

    def __call__(self, hidden: Tensor, token_ids: TokenIds, *, is_query: bool) -> NDArray[np.float32]:
        """From the hidden states [tokens, dim] of one text: [kept tokens, vector dim]."""
        ...


class SpladeHead:
    """The masked-language-model head, then sentence-transformers' SpladePooling: the most (or all) that any token says.

    Args:
        model: A transformers ``...ForMaskedLM`` whose body is ``stand_in``.
        stand_in: See there.
        pooling: "max" or "sum" over the tokens.
        log_twice: Whether log(1 + x) is taken twice.
    """

    def __init__(self, model: Any, stand_in: StandIn, *, pooling: str, log_twice: bool) -> None:
        self._model = model
        self._stand_in = stand_in
        self._pooling = pooling
        self._log_twice = log_twice

    def __call__(self, hidden: Tensor, token_ids: TokenIds) -> Sparse:
        """See `SparseHead`."""
        pooled: Tensor | None = None
        for start in range(0, len(hidden), _CHUNK_TOKENS):
            self._stand_in.hidden = hidden[None, start : start + _CHUNK_TOKENS]
            ids = to_tensor(token_ids[None, start : start + _CHUNK_TOKENS], hidden.device)
            weights = self._model(input_ids=ids).logits[0].relu().log1p()
            if self._log_twice:
                weights = weights.log1p()
            part = weights.amax(dim=0) if self._pooling == "max" else weights.sum(dim=0)
            if pooled is None:
                pooled = part
            else:
                pooled = torch.maximum(pooled, part) if self._pooling == "max" else pooled + part
        self._stand_in.hidden = None
        assert pooled is not None, "a text has at least one token"
        return _nonzero(pooled.float())


class TokenWeightHead:
    """One linear layer that weighs each token of the text (BGE-M3); of a repeated token the highest weight counts.

    Args:
        linear: [dim] to 1.
        vocabulary_size: For the bounds of the indices.
        unused: Token ids without a weight: the special ones.
    """

    def __init__(self, linear: nn.Module, *, vocabulary_size: int, unused: Collection[int]) -> None:
        self._linear = linear
        self._vocabulary_size = vocabulary_size
        self._unused = list(unused)

    def __call__(self, hidden: Tensor, token_ids: TokenIds) -> Sparse:
        """See `SparseHead`."""
        weights = self._linear(hidden).relu()[:, 0].float()
        ids = to_tensor(token_ids, hidden.device)
        pooled = weights.new_zeros(self._vocabulary_size).scatter_reduce(0, ids, weights, reduce="amax")
        pooled[self._unused] = 0.0
        return _nonzero(pooled)


class ModuleHead:
    """sentence-transformers' own modules behind the transformer of a MultiVectorEncoder (Dense, Normalize).

    Args:
        modules: They read and write ``token_embeddings``.
        skipped: Token ids that a document's vectors leave out.
        skips_query: Whether a query's do so, too.
        kept: The only token ids that a document keeps; empty for all.
    """

    def __init__(
        self, modules: Sequence[nn.Module], *, skipped: Collection[int], skips_query: bool, kept: Collection[int]
    ) -> None:
        self._modules = tuple(modules)
        self._skipped = np.array(sorted(skipped), dtype=np.int64)
        self._kept = np.array(sorted(kept), dtype=np.int64)
        self._skips_query = skips_query

    def __call__(self, hidden: Tensor, token_ids: TokenIds, *, is_query: bool) -> NDArray[np.float32]:
        """See `MultiVectorHead`."""
        features: dict[str, Any] = {"token_embeddings": hidden[None].float()}
        for module in self._modules:
            features = module(features)
        vectors: NDArray[np.float32] = features["token_embeddings"][0].float().cpu().numpy()
        counts = np.ones(len(token_ids), dtype=bool)
        if not is_query or self._skips_query:
            counts &= ~np.isin(token_ids, self._skipped)
        if not is_query and len(self._kept):
            counts &= np.isin(token_ids, self._kept)
        return vectors[counts]


class ColbertHead:
    """One linear layer and length 1, for every token but the first (BGE-M3).

    Args:
        linear: [dim] to the vectors' dimension.
    """

    def __init__(self, linear: nn.Module) -> None:
        self._linear = linear

    def __call__(self, hidden: Tensor, token_ids: TokenIds, *, is_query: bool) -> NDArray[np.float32]:
        """See `MultiVectorHead`."""
        vectors: NDArray[np.float32] = F.normalize(self._linear(hidden[1:]).float(), dim=-1).cpu().numpy()
        return vectors


def _nonzero(pooled: Tensor) -> Sparse:
    values: NDArray[np.float32] = pooled.cpu().numpy()
    (indices,) = values.nonzero()
    return Sparse(indices.astype(np.int32), values[indices])
