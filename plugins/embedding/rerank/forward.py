"""Ways to run a transformers sequence classifier over pairs of any lengths: its body packed flat, its head per group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sixfold.plugins.embedding.attention import PackedAttention
from sixfold.plugins.embedding.forward import position_offset
from sixfold.plugins.embedding.packing import PackedBatch, near_equal_groups, pack, to_tensor
from sixfold.plugins.embedding.rerank.pairs import PairTokens
from sixfold.plugins.embedding.stand_in import take_body


class PairForward(Protocol):
    """Runs the classifier."""

    @property
    def mode(self) -> str:
        """A word for logs and ``/v1/models``."""
        ...

    def __call__(self, pairs: Sequence[PairTokens]) -> tuple[Tensor, PackedBatch]:
        """Logits [pairs, labels] in the batch's order, and the batch."""
        ...


class PackedPairs:
    """The body over one flat batch without padding; the stock head over padded groups of the hidden states.

    The head is whatever the class does behind its body (a pooler, the last token, a mean): it gets a stand-in for the body
    and the padded ids and masks from which it finds its tokens.

    Args:
        classifier: A transformers ``...ForSequenceClassification`` whose attention function is ``attention``; its body is
            replaced by the stand-in.
        attention: See there.
        pad_token_id: Id for padding.
        takes_types: Whether the model's tokenizer makes segment ids.
        mode: "fused" or "packed".
    """

    def __init__(
        self, classifier: Any, attention: PackedAttention, *, pad_token_id: int, takes_types: bool, mode: str
    ) -> None:
        self.mode = mode
        self._classifier = classifier
        self._attention = attention
        self._pad_token_id = pad_token_id
        self._takes_types = takes_types
        self._body, self._stand_in = take_body(classifier)
        self._position_offset = position_offset(self._body)

    def __call__(self, pairs: Sequence[PairTokens]) -> tuple[Tensor, PackedBatch]:
        """See `PairForward`."""
        device = next(self._body.parameters()).device
        batch = pack([pair.token_ids for pair in pairs], position_offset=self._position_offset, device=device)
        types: dict[str, Tensor] = {}
        if self._takes_types:
            flat = np.concatenate([pairs[index].type_ids for index in cast("list[int]", batch.order.tolist())])
            types["token_type_ids"] = to_tensor(flat, device)[None]
        with self._attention.running(batch):
            hidden = self._body(input_ids=batch.token_ids, position_ids=batch.position_ids, **types).last_hidden_state
        return self._run_head(hidden[0], batch), batch

    def _run_head(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        logits: list[Tensor] = []
        for group, is_real in zip(batch.groups, _masks(batch), strict=True):
            mask = to_tensor(is_real, hidden.device)
            shape = (group.num_sequences, group.max_tokens)
            token_ids = torch.full(shape, self._pad_token_id, dtype=torch.int64, device=hidden.device)
            token_ids[mask] = batch.token_ids[0, group.start : group.stop]
            if group.gather is None:
                self._stand_in.hidden = hidden[group.start : group.stop].view(*shape, -1)
            else:
                self._stand_in.hidden = hidden[group.start : group.stop].index_select(0, group.gather).view(*shape, -1)
            logits.append(self._classifier(input_ids=token_ids, attention_mask=mask.long()).logits)
        self._stand_in.hidden = None
        return torch.cat(logits)


class GroupedPairs:
    """One padded batch for each group of near-equal length, for classifiers whose body can't be packed.

    Args:
        classifier: Any transformers ``...ForSequenceClassification``.
        pad_token_id: Id for padding.
        takes_types: Whether the model's tokenizer makes segment ids.
        mode: "grouped" or "stock".
    """

    def __init__(self, classifier: Any, *, pad_token_id: int, takes_types: bool, mode: str) -> None:
        self.mode = mode
        self._classifier = classifier
        self._pad_token_id = pad_token_id
        self._takes_types = takes_types

    def __call__(self, pairs: Sequence[PairTokens]) -> tuple[Tensor, PackedBatch]:
        """See `PairForward`."""
        device = next(self._classifier.parameters()).device
        batch = pack([pair.token_ids for pair in pairs], position_offset=0, device=device, group=near_equal_groups)
        types = np.concatenate([pairs[index].type_ids for index in cast("list[int]", batch.order.tolist())])
        logits: list[Tensor] = []
        for group, is_real in zip(batch.groups, _masks(batch), strict=True):
            mask = to_tensor(is_real, device)
            inputs = {"input_ids": torch.full(mask.shape, self._pad_token_id, dtype=torch.int64, device=device)}
            inputs["input_ids"][mask] = batch.token_ids[0, group.start : group.stop]
            if self._takes_types:
                inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
                inputs["token_type_ids"][mask] = to_tensor(types[group.start : group.stop], device)
            logits.append(self._classifier(**inputs, attention_mask=mask.long()).logits)
        return torch.cat(logits), batch


def _masks(batch: PackedBatch) -> list[NDArray[np.bool_]]:
    """[sequences, tokens] of each group: True at real tokens."""
    masks: list[NDArray[np.bool_]] = []
    first = 0
    for group in batch.groups:
        lengths = batch.lengths[first : first + group.num_sequences]
        first += group.num_sequences
        masks.append(np.arange(group.max_tokens) < lengths[:, None])
    return masks
