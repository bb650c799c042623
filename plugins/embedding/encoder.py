"""From token ids to vectors: the transformer, pooling and the modules that follow it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sixfold.core.runtime.cuda_graphs import Capture, capture_cuda_graph
from sixfold.core.runtime.events import recorded_event
from sixfold.plugins.embedding.attention import PackedAttention
from sixfold.plugins.embedding.forward import Forward, RecordableForward
from sixfold.plugins.embedding.outputs.heads import MultiVectorHead, Sparse, SparseHead
from sixfold.plugins.embedding.packing import PackedBatch, TokenIds
from sixfold.plugins.embedding.pooling import FlatHidden, pool
from sixfold.plugins.embedding.schema import OutputType

_OUTPUT_TYPES: tuple[OutputType, ...] = ("dense", "sparse", "multi_vector")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInput:
    """One text.

    Attributes:
        token_ids: Never empty.
        num_prompt_tokens: First tokens that pooling leaves out.
        wanted: What to make of it.
        is_query: Whether it is a query to models that tell queries from documents.
    """

    token_ids: TokenIds
    num_prompt_tokens: int = 0
    wanted: tuple[OutputType, ...]
    is_query: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What was made of one text; None for what was not wanted."""

    dense: NDArray[np.float32] | None = None
    sparse: Sparse | None = None
    multi_vector: NDArray[np.float32] | None = None

    @property
    def is_finite(self) -> bool:
        """Whether all values are numbers."""
        parts = (self.dense, self.sparse.values if self.sparse else None, self.multi_vector)
        return all(bool(np.isfinite(part).all()) for part in parts if part is not None)


class VectorsToCome:
    """Vectors that are on their way from the device; the transfer runs beside the next batch.

    Args:
        vectors: [sequences, dimension] float32, in the batch's order.
        order: See `PackedBatch`.
    """

    def __init__(self, vectors: Tensor, order: NDArray[np.intp]) -> None:
        self._order = order
        self._arrived: Any = None
        self._host = vectors
        if vectors.is_cuda:
            self._host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            self._host.copy_(vectors, non_blocking=True)
            self._arrived = recorded_event(vectors.device)

    @property
    def is_there(self) -> bool:
        """Whether `wait` returns at once. [any thread]"""
        return self._arrived is None or bool(self._arrived.query())

    def block(self) -> None:
        """Returns when they are there. [any thread]"""
        if self._arrived is not None:
            self._arrived.synchronize()

    def wait(self) -> NDArray[np.float32]:
        """[sequences, dimension], in the caller's order."""
        self.block()
        in_batch: NDArray[np.float32] = self._host.numpy()
        in_order = np.empty_like(in_batch)
        in_order[self._order] = in_batch
        return in_order


class Encoder:
    """A ready network. Used by the device thread alone.

    Args:
        forward: How the transformer runs.
        pooling: Modes, see `sixfold.plugins.embedding.pooling.POOLING`; none for a model without dense vectors.
        pools_prompt: Whether a prompt's own tokens are pooled too.
        tail: sentence-transformers modules behind pooling (Dense, Normalize, LayerNorm), in order.
        normalizes: Whether the vectors have length 1.
        dimension: Values in a vector.
        attention: What `close` takes out of transformers' registry.
        sparse_head: Makes sparse vectors, if the model has them.
        multi_vector_head: Makes token vectors, if the model has them.

    Attributes:
        forward: As given; what stands in its place must give the same.
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
        sparse_head: SparseHead | None = None,
        multi_vector_head: MultiVectorHead | None = None,
    ) -> None:
        self.forward: Forward = forward
        self._recordable = forward
        self._pooling = pooling
        self._tail = tuple(tail)
        self._attention = attention
        self._sparse_head = sparse_head
        self._multi_vector_head = multi_vector_head
        self.pools_prompt = pools_prompt
        self.normalizes = normalizes
        self.dimension = dimension
        self.num_padding = 0
        self._counting = threading.Lock()  # guards the count: parts of a step run in several threads

    @property
    def mode(self) -> str:
        """How the transformer runs."""
        return self.forward.mode

    @property
    def output_types(self) -> tuple[OutputType, ...]:
        """What the model can make of a text."""
        has = {"dense": self._pooling, "sparse": self._sparse_head, "multi_vector": self._multi_vector_head}
        return tuple(kind for kind in _OUTPUT_TYPES if has[kind])

    @torch.inference_mode()
    def embed(self, sequences: Sequence[TokenIds], num_prompt_tokens: Sequence[int]) -> NDArray[np.float32]:
        """One vector a sequence: [sequences, dimension], in the caller's order.

        Args:
            sequences: Token ids, none empty.
            num_prompt_tokens: First tokens of each sequence that pooling leaves out; only heeded if any is not 0.
        """
        return self.begin(sequences, num_prompt_tokens).wait()

    @torch.inference_mode()
    def begin(self, sequences: Sequence[TokenIds], num_prompt_tokens: Sequence[int]) -> VectorsToCome:
        """Starts what `embed` does. On a GPU it returns while the card works; else the vectors are there already."""
        hidden, batch = self.forward(sequences)
        with self._counting:
            self.num_padding += batch.num_padding
        return VectorsToCome(self._pooled(hidden, batch, num_prompt_tokens), batch.order)

    def record(self, max_tokens: int, capture: Capture | None = None) -> None:
        """Records steps of up to so many tokens, where the network is run in a way that allows it.

        Args:
            max_tokens: 0 records none.
            capture: Makes a call repeatable; CUDA graphs unless given.
        """
        if isinstance(self._recordable, RecordableForward) and max_tokens > 0:
            self._recordable.record(max_tokens, capture or capture_cuda_graph(self._recordable.device))

    @torch.inference_mode()
    def encode(self, inputs: Sequence[EncoderInput]) -> list[Outputs]:
        """Whatever each text wants, in the caller's order; `embed` is the faster way to dense vectors alone."""
        hidden, batch = self.forward([each.token_ids for each in inputs])
        self.num_padding += batch.num_padding
        dense: NDArray[np.float32] | None = None
        if any("dense" in each.wanted for each in inputs):
            vectors = self._pooled(hidden, batch, [each.num_prompt_tokens for each in inputs])
            dense = VectorsToCome(vectors, batch.order).wait()
        found: list[Outputs] = [Outputs()] * len(inputs)
        start = 0
        order, lengths = cast("list[int]", batch.order.tolist()), cast("list[int]", batch.lengths.tolist())
        for index, length in zip(order, lengths, strict=True):
            mine, each = hidden[start : start + length], inputs[index]
            start += length
            sparse = multi_vector = None
            if "sparse" in each.wanted and self._sparse_head is not None:
                sparse = self._sparse_head(mine, each.token_ids)
            if "multi_vector" in each.wanted and self._multi_vector_head is not None:
                multi_vector = self._multi_vector_head(mine, each.token_ids, is_query=each.is_query)
            found[index] = Outputs(
                dense=dense[index] if dense is not None else None, sparse=sparse, multi_vector=multi_vector
            )
        return found

    def _pooled(self, hidden: Tensor, batch: PackedBatch, num_prompt_tokens: Sequence[int]) -> Tensor:
        flat = FlatHidden(hidden=hidden, starts=batch.starts, lengths=batch.token_counts)
        if any(num_prompt_tokens):
            skipped = torch.tensor([num_prompt_tokens[index] for index in batch.order], device=hidden.device)
            flat = flat.without_prompts(skipped)
        return self._run_tail(pool(flat, self._pooling)).float()

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
