"""What the model's untouched distribution says of the tokens that were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sixfold.plugins.llm.host_copy import HostCopy
from sixfold.plugins.llm.sampling import Sampling
from sixfold.plugins.llm.tensors import float_list, index_tensor, int_list


class ScoredRow(Protocol):
    """What is read of a sequence here."""

    @property
    def sampling(self) -> Sampling:
        """Resolved parameters."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLogprobs:
    """Log probabilities at one place, of the model's untouched distribution.

    Attributes:
        chosen: Of the chosen token.
        top_ids: The likeliest tokens, most likely first.
        top: Their log probabilities.
    """

    chosen: float
    top_ids: tuple[int, ...]
    top: tuple[float, ...]


class PendingLogprobs:
    """Log probabilities on their way to the host.

    Args:
        wanted: The rows that want them, and how many of the likeliest tokens each.
        copies: Of the chosen tokens' [wanted], of the likeliest ones' ids and values [wanted, most].
    """

    def __init__(self, wanted: Mapping[int, int], copies: tuple[HostCopy, HostCopy, HostCopy] | None) -> None:
        self._wanted = wanted
        self._copies = copies

    def wait(self) -> dict[int, RowLogprobs]:
        """Those of the rows that want them."""
        if self._copies is None:
            return {}
        of_chosen, top_ids, top_values = (copy.wait() for copy in self._copies)
        chosen = float_list(of_chosen)
        return {
            i: RowLogprobs(
                chosen=chosen[place],
                top_ids=tuple(int_list(top_ids[place, :count])),
                top=tuple(float_list(top_values[place, :count])),
            )
            for place, (i, count) in enumerate(self._wanted.items())
        }


def begin_logprobs(raw: Tensor, rows: Sequence[ScoredRow], chosen: Tensor) -> PendingLogprobs:
    """What the untouched distribution says of chosen tokens, for the rows that want it, without waiting for the device.

    Args:
        raw: [rows, vocabulary] float32.
        rows: Their sequences.
        chosen: [rows] int64.
    """
    wanted = {i: top for i, row in enumerate(rows) if (top := row.sampling.num_top_logprobs) is not None}
    if not wanted:
        return PendingLogprobs(wanted, None)
    at = index_tensor(list(wanted), raw.device)
    logprobs = torch.log_softmax(raw[at], dim=-1)
    top_values, top_ids = logprobs.topk(max(wanted.values()), dim=-1)
    of_chosen = logprobs.gather(1, chosen[at].unsqueeze(1)).squeeze(1)
    return PendingLogprobs(wanted, (HostCopy(of_chosen), HostCopy(top_ids), HostCopy(top_values)))


def score(logits: Tensor, rows: Sequence[ScoredRow], token_ids: Sequence[int]) -> list[RowLogprobs]:
    """What the untouched distribution says of given tokens.

    Args:
        logits: [rows, vocabulary], any float type.
        rows: Their sequences, all with log probabilities wanted.
        token_ids: One for each row.
    """
    found = begin_logprobs(logits.float(), rows, index_tensor(token_ids, logits.device)).wait()
    return [found[i] for i in range(len(rows))]
