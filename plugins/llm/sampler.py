"""Chooses the next token of every row of logits; what a row gets never depends on the other rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sixfold.plugins.llm.penalties import RowPenalties, TokenCounts, apply_penalties
from sixfold.plugins.llm.randomness import uniform
from sixfold.plugins.llm.sampling import Sampling
from sixfold.plugins.llm.tensors import bool_list, float_list, index_tensor, int_list, to_tensor
from sixfold.plugins.llm.truncation import Draw, draw_tokens

BoolArray = npt.NDArray[np.bool_]

_NO_MASKS: Mapping[int, BoolArray] = MappingProxyType({})


class SampledRow(Protocol):
    """What the sampler reads of a sequence."""

    @property
    def sampling(self) -> Sampling:
        """Resolved parameters."""
        ...

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        ...

    @property
    def token_counts(self) -> TokenCounts | None:
        """Tokens seen so far; there if the parameters have penalties."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """The next token of a row; ``token_id`` is None where the model gave NaN or nothing but minus infinity, or where the
    grammar allows nothing."""

    token_id: int | None
    logprobs: RowLogprobs | None = None


def sample(
    logits: Tensor, rows: Sequence[SampledRow], masks: Mapping[int, BoolArray] = _NO_MASKS
) -> list[SampledToken]:
    """Chooses one token per row. Changes no state, so a failed step can be repeated.

    Args:
        logits: [rows, vocabulary], any float type.
        rows: The sequences, in the order of the logits.
        masks: For rows with a grammar: which tokens it allows, [vocabulary]. It has the last word before the temperature,
            and no say in the log probabilities.
    """
    # max, not argmax: it also shows rows that are not finite, and argmax of bfloat16 takes four times as long.
    best, likeliest = logits.max(dim=-1)
    valid = bool_list(torch.isfinite(best))
    for i, mask in masks.items():
        valid[i] = valid[i] and bool(mask.any())
    token_ids = int_list(likeliest)
    others = [i for i, row in enumerate(rows) if valid[i] and (i in masks or not row.sampling.is_plain_greedy)]
    logprobs: dict[int, RowLogprobs] = {}
    if others:
        chosen_rows = [rows[i] for i in others]
        raw = logits[index_tensor(others, logits.device)].float()
        chosen = _choose(raw, chosen_rows, {place: masks[i] for place, i in enumerate(others) if i in masks})
        for place, token_id, row_logprobs in zip(others, chosen, _logprobs(raw, chosen_rows, chosen), strict=True):
            token_ids[place] = token_id
            if row_logprobs is not None:
                logprobs[place] = row_logprobs
    return [
        SampledToken(token_id=token_id if ok else None, logprobs=logprobs.get(i))
        for i, (token_id, ok) in enumerate(zip(token_ids, valid, strict=True))
    ]


def score(logits: Tensor, rows: Sequence[SampledRow], token_ids: Sequence[int]) -> list[RowLogprobs]:
    """What the untouched distribution says of given tokens.

    Args:
        logits: [rows, vocabulary], any float type.
        rows: Their sequences, all with log probabilities wanted.
        token_ids: One for each row.
    """
    return [found for found in _logprobs(logits.float(), rows, token_ids) if found is not None]


def _choose(raw: Tensor, rows: Sequence[SampledRow], masks: Mapping[int, BoolArray]) -> list[int]:
    logits = raw.clone()
    _apply_bias(logits, rows)
    _forbid_early_end(logits, rows, masks)
    apply_penalties(
        logits,
        [
            RowPenalties(
                row=i,
                counts=row.token_counts,
                presence=row.sampling.presence_penalty,
                frequency=row.sampling.frequency_penalty,
                repetition=row.sampling.repetition_penalty,
            )
            for i, row in enumerate(rows)
            if row.token_counts is not None
        ],
    )
    _apply_masks(logits, masks)
    tokens = logits.argmax(dim=-1)
    drawn = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    if drawn:
        at = index_tensor(drawn, logits.device)
        temperature = torch.tensor([rows[i].sampling.temperature for i in drawn], device=logits.device)
        tokens[at] = draw_tokens(logits[at] / temperature.unsqueeze(1), _draw([rows[i] for i in drawn], logits.device))
    return int_list(tokens)


def _draw(rows: Sequence[SampledRow], device: torch.device) -> Draw:
    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)

    return Draw(
        uniform=column([uniform(r.sampling.seed, r.sampling.choice, r.num_output_tokens) for r in rows]),
        top_k=index_tensor([r.sampling.top_k for r in rows], device),
        top_p=column([r.sampling.top_p for r in rows]),
        min_p=column([r.sampling.min_p for r in rows]),
    )


def _apply_bias(logits: Tensor, rows: Sequence[SampledRow]) -> None:
    biased = [(i, row.sampling) for i, row in enumerate(rows) if len(row.sampling.bias_ids)]
    if not biased:
        return
    at = np.repeat([i for i, _ in biased], [len(s.bias_ids) for _, s in biased])
    ids = to_tensor(np.concatenate([s.bias_ids for _, s in biased]), logits.device)
    values = to_tensor(np.concatenate([s.bias_values for _, s in biased]), logits.device)
    logits[to_tensor(at, logits.device), ids] += values


def _forbid_early_end(logits: Tensor, rows: Sequence[SampledRow], masks: Mapping[int, BoolArray]) -> None:
    for i, row in enumerate(rows):
        if row.num_output_tokens < row.sampling.min_tokens and row.sampling.end_ids:
            ends = list(row.sampling.end_ids)
            # A grammar that leaves nothing but the end is right: an answer can't be lengthened then.
            if i not in masks or masks[i].sum() > masks[i][ends].sum():
                logits[i, ends] = -torch.inf


def _apply_masks(logits: Tensor, masks: Mapping[int, BoolArray]) -> None:
    if not masks:
        return
    if logits.device.type == "cpu":
        # One thread: a row takes tens of microseconds, less than waking torch's others.
        rows = logits.numpy()
        for i, mask in masks.items():
            np.putmask(rows[i], ~mask, -np.inf)
        return
    allowed = to_tensor(np.stack(list(masks.values())), logits.device)
    at = index_tensor(list(masks), logits.device)
    logits[at] = logits[at].masked_fill(~allowed, -torch.inf)


def _logprobs(raw: Tensor, rows: Sequence[SampledRow], chosen: Sequence[int]) -> list[RowLogprobs | None]:
    wanted = [i for i, row in enumerate(rows) if row.sampling.num_top_logprobs is not None]
    result: list[RowLogprobs | None] = [None] * len(rows)
    if not wanted:
        return result
    logprobs = torch.log_softmax(raw[index_tensor(wanted, raw.device)], dim=-1)
    counts = [rows[i].sampling.num_top_logprobs or 0 for i in wanted]
    top_values, top_ids = logprobs.topk(max(counts), dim=-1)
    of_chosen = float_list(
        logprobs.gather(1, index_tensor([chosen[i] for i in wanted], raw.device).unsqueeze(1)).squeeze(1)
    )
    for place, i in enumerate(wanted):
        ids = int_list(top_ids[place, : counts[place]])
        values = float_list(top_values[place, : counts[place]])
        result[i] = RowLogprobs(chosen=of_chosen[place], top_ids=tuple(ids), top=tuple(values))
    return result
