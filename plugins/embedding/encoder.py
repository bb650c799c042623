"""From token ids to vectors: the transformer, pooling and the modules that follow it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sixfold.plugins.embedding.attention import PackedAttention
from sixfold.plugins.embedding.forward import Forward
from sixfold.plugins.embedding.packing import TokenIds, to_tensor
from sixfold.plugins.embedding.pooling import FlatHidden, pool


class Encoder:
    """A ready network. Used by the device thread alone.

    Args:
        forward: How the transformer runs.
        pooling: Modes, see `sixfold.plugins.embedding.pooling.POOLING`.
        pools_prompt: Whether a prompt's own tokens are pooled too.
        tail: sentence-transformers modules behind pooling (Dense, Normalize, LayerNorm), in order.
        normalizes: Whether the vectors have length 1.
        dimension: Values in a vector.
        attention: What `close` takes out of transformers' registry.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        pooling: tuple[str, ...],
        pools_prompt: bool,
        tail: Sequence[nn.Module],
        normalizes: bool,
        dimension: int,
        attention: PackedAttention | None = None,
    ) -> None:
        self._forward = forward
        self._pooling = pooling
        self._tail = tuple(tail)
        self._attention = attention
        self.pools_prompt = pools_prompt
        self.normalizes = normalizes
        self.dimension = dimension
        self.num_padding = 0

    @property
    def mode(self) -> str:
        """How the transformer runs."""
        return self._forward.mode

    @torch.inference_mode()
    def embed(self, sequences: Sequence[TokenIds], num_prompt_tokens: Sequence[int]) -> NDArray[np.float32]:
        """One vector a sequence: [sequences, dimension], in the caller's order.

        Args:
            sequences: Token ids, none empty.
            num_prompt_tokens: First tokens of each sequence that pooling leaves out; only heeded if any is not 0.
        """
        hidden, batch = self._forward(sequences)
        lengths = to_tensor(batch.lengths, hidden.device)
        flat = FlatHidden(hidden=hidden, starts=lengths.cumsum(0) - lengths, lengths=lengths)
        if any(num_prompt_tokens):
            skipped = torch.tensor([num_prompt_tokens[index] for index in batch.order], device=hidden.device)
            flat = flat.without_prompts(skipped)
        vectors = self._run_tail(pool(flat, self._pooling)).float().cpu().numpy()
        self.num_padding += batch.num_padding
        in_order = np.empty_like(vectors)
        in_order[batch.order] = vectors
        return in_order

    def close(self) -> None:
        """Takes the attention function out of transformers' registry, the one thing that would outlive this object."""
        if self._attention is not None:
            self._attention.close()

    def _run_tail(self, vectors: Tensor) -> Tensor:
        features: dict[str, Any] = {"sentence_embedding": vectors}
        for module in self._tail:
            features = module(features)
        result: Tensor = features["sentence_embedding"]
        return result
