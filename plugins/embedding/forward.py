"""Ways to run a transformer over sequences of any lengths: packed flat, or in padded groups of near-equal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from sixfold.core.runtime.cuda_graphs import Capture
from sixfold.plugins.embedding.attention import PackedAttention
from sixfold.plugins.embedding.packing import PackedBatch, TokenIds, near_equal_groups, pack, to_tensor


class Forward(Protocol):
    """Runs the transformer."""

    @property
    def mode(self) -> str:
        """A word for logs and ``/v1/models``."""
        ...

    def __call__(self, sequences: Sequence[TokenIds]) -> tuple[Tensor, PackedBatch]:
        """The last hidden states [total_tokens, dim] in the batch's order, and the batch."""
        ...


@runtime_checkable
class RecordableForward(Forward, Protocol):
    """One whose steps can be recorded as CUDA graphs."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def record(self, max_tokens: int, capture: Capture) -> None:
        """Records steps of up to so many tokens."""
        ...


@runtime_checkable
class PackedModel(Forward, Protocol):
    """One that runs sequences without padding, so that nothing but attention sees where one begins.

    Attributes:
        model: The transformer, whose attention function is ``attention``.
        attention: See there.
        position_offset: Position id of a first token.
    """

    model: Any
    attention: PackedAttention
    position_offset: int


class PackedForward:
    """One flat batch: no layer but attention sees a sequence's bounds, and none sees padding.

    Args:
        model: A transformers model whose attention function is ``attention``.
        attention: See there.
        mode: "fused" or "packed".
    """

    def __init__(self, model: nn.Module, attention: PackedAttention, *, mode: str) -> None:
        self.model = model
        self.attention = attention
        self.position_offset = position_offset(model)
        self.mode = mode

    def __call__(self, sequences: Sequence[TokenIds]) -> tuple[Tensor, PackedBatch]:
        """See `Forward`."""
        batch = pack(sequences, position_offset=self.position_offset, device=_device(self.model))
        with self.attention.running(batch):
            output = self.model(input_ids=batch.token_ids, position_ids=batch.position_ids)
        return output.last_hidden_state[0], batch


class GroupedForward:
    """One padded batch for each group of near-equal length, for models whose attention can't be packed.

    Args:
        model: Any transformers model that takes ``input_ids`` and ``attention_mask``.
        pad_token_id: Id for padding.
        mode: "grouped" or "stock".
    """

    def __init__(self, model: nn.Module, pad_token_id: int, *, mode: str) -> None:
        self.mode = mode
        self._model = model
        self._pad_token_id = pad_token_id

    def __call__(self, sequences: Sequence[TokenIds]) -> tuple[Tensor, PackedBatch]:
        """See `Forward`."""
        device = _device(self._model)
        batch = pack(sequences, position_offset=0, device=device, group=near_equal_groups)
        hidden: list[Tensor] = []
        first = 0
        for group in batch.groups:
            lengths = batch.lengths[first : first + group.num_sequences]
            first += group.num_sequences
            is_real = to_tensor(np.arange(group.max_tokens) < lengths[:, None], device)
            token_ids = torch.full(is_real.shape, self._pad_token_id, dtype=torch.int64, device=device)
            token_ids[is_real] = batch.token_ids[0, group.start : group.stop]
            output = self._model(input_ids=token_ids, attention_mask=is_real.long())
            hidden.append(output.last_hidden_state[is_real])
        return torch.cat(hidden), batch


def position_offset(model: nn.Module) -> int:
    """Position id of the first token: ``padding_idx + 1`` in the RoBERTa family's learned tables, else 0."""
    for module in model.modules():
        padding_index = getattr(module, "padding_idx", None)
        if isinstance(padding_index, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding_index + 1
    return 0


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
