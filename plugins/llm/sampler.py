"""Chooses the next token of every row of logits; what a row gets never depends on the other rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sixfold.plugins.llm.host_copy import HostCopy
from sixfold.plugins.llm.logprobs import RowLogprobs, begin_logprobs
from sixfold.plugins.llm.penalties import RowPenalties, TokenCounts, apply_penalties
from sixfold.plugins.llm.randomness import uniform
from sixfold.plugins.llm.sampling import Sampling
from sixfold.plugins.llm.tensors import bool_list, float_tensor, index_tensor, int_list, to_tensor
from sixfold.plugins.llm.truncation import Draw, begin_draw, candidates_of, draw_from_sorted

BoolArray = npt.NDArray[np.bool_]

_NO_MASKS: Mapping[int, BoolArray] = MappingProxyType({})


class SampledRow(Protocol):
    """What the sampler reads of a sequence."""

    @property
    def sampling(self) -> Sampling:
        """Resolved parameters."""
        ...

    @property
    def num_before(self) -> int:
        """Tokens of the answer that come before the one to choose."""
        ...

    @property
    def token_counts(self) -> TokenCounts | None:
        """Tokens seen so far, as far as the host knows; there if the parameters have penalties."""
        ...

    @property
    def has_unknown(self) -> bool:
        """Whether the host does not know the last of the tokens before."""
        ...


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
    found = begin_sample(logits, rows, masks).wait()
    return [
        SampledToken(token_id=None if token_id < 0 else token_id, logprobs=found.logprobs.get(i))
        for i, token_id in enumerate(found.token_ids)
    ]


class SampledRows(NamedTuple):
    """The next tokens of a batch, on the host.

    Attributes:
        token_ids: Of each row; -1 where `SampledToken` has None.
        logprobs: Of the rows that want them.
        changed: Rows whose token is another than the one in `PendingSample.tokens`.
    """

    token_ids: list[int]
    logprobs: dict[int, RowLogprobs]
    changed: Collection[int]


NO_ROWS = SampledRows([], {}, ())


class PendingSample:
    """Tokens that the device chooses; what it computes next may start from them before the host knows them.

    Args:
        tokens: [rows] int64, -1 where there is none.
        others: Of the rows that need more than their likeliest token; None if there are none.
    """

    __slots__ = ("_copy", "_others", "tokens")

    def __init__(self, tokens: Tensor, others: _Others | None) -> None:
        self.tokens = tokens
        self._copy = HostCopy(tokens)
        self._others = others

    def wait(self) -> SampledRows:
        """The tokens on the host."""
        token_ids = int_list(self._copy.wait())
        if self._others is None:
            return SampledRows(token_ids, {}, ())
        return self._others.complete(token_ids)


def begin_sample(
    logits: Tensor,
    rows: Sequence[SampledRow],
    masks: Mapping[int, BoolArray] = _NO_MASKS,
    unknown: Tensor | None = None,
) -> PendingSample:
    """As `sample`, without waiting for the device.

    Args:
        logits: As there; may be written over once the device has come to what begins after this.
        rows: As there.
        masks: As there.
        unknown: [rows] the last token of each row, for those that `SampledRow.has_unknown`.
    """
    # max, not argmax: it also shows rows that are not finite, and argmax of bfloat16 takes four times as long.
    best, tokens = logits.max(dim=-1)
    is_valid = torch.isfinite(best)
    impossible = [i for i, mask in masks.items() if not mask.any()]
    chosen = [i for i, row in enumerate(rows) if i in masks or not row.sampling.is_plain_greedy]
    others: _Others | None = None
    if chosen:
        at = index_tensor(chosen, logits.device)
        raw = logits[at].float()
        its_masks = {place: masks[i] for place, i in enumerate(chosen) if i in masks}
        its_unknown = None if unknown is None else unknown[at]
        others = _Others(chosen, raw, [rows[i] for i in chosen], its_masks, its_unknown)
        tokens[at] = others.tokens
        if impossible:
            is_valid[index_tensor(impossible, logits.device)] = False
    return PendingSample(torch.where(is_valid, tokens, -1), others)


class _Others:
    """The rows of a batch that need more than their likeliest token.

    Args:
        places: Their places in the batch.
        raw: [rows, vocabulary] float32, their own.
        rows: Their sequences.
        masks: By their place in here.
        unknown: See `begin_sample`.
    """

    def __init__(
        self,
        places: Sequence[int],
        raw: Tensor,
        rows: Sequence[SampledRow],
        masks: Mapping[int, BoolArray],
        unknown: Tensor | None,
    ) -> None:
        self._places = places
        self._raw = raw
        self._rows = rows
        logits = _changed_logits(raw, rows, masks, unknown)
        self.tokens = logits.argmax(dim=-1)
        self._drawn = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
        self._is_complete: HostCopy | None = None
        if self._drawn:
            at = index_tensor(self._drawn, raw.device)
            temperature = float_tensor([rows[i].sampling.temperature for i in self._drawn], raw.device)
            drawn_rows = [rows[i] for i in self._drawn]
            self._scaled = logits[at] / temperature.unsqueeze(1)
            self._draw = _draw(drawn_rows, raw.device)
            candidates = [candidates_of(r.sampling.top_k, r.sampling.top_p, r.sampling.min_p) for r in drawn_rows]
            drawn = begin_draw(self._scaled, self._draw, candidates)
            self.tokens[at] = drawn.tokens
            if any(candidates):
                self._is_complete = HostCopy(drawn.is_complete)
        self._logprobs = begin_logprobs(raw, rows, self.tokens)

    def complete(self, token_ids: list[int]) -> SampledRows:
        """What the batch's tokens are; the rows that the device could not finish are finished now."""
        changed: list[int] = []
        logprobs = self._logprobs
        if self._is_complete is not None:
            final = bool_list(self._is_complete.wait())
            rest = [place for place, is_final in enumerate(final) if not is_final]
            if rest:
                at = index_tensor(rest, self.tokens.device)
                tokens = draw_from_sorted(self._scaled[at], self._draw.select(at))
                for place, token_id in zip(rest, int_list(tokens), strict=True):
                    row = self._places[self._drawn[place]]
                    if token_ids[row] not in (-1, token_id):
                        token_ids[row] = token_id
                        changed.append(row)
                if changed:
                    logprobs = begin_logprobs(
                        self._raw,
                        self._rows,
                        index_tensor([max(0, token_ids[i]) for i in self._places], self.tokens.device),
                    )
        found = logprobs.wait()
        return SampledRows(token_ids, {self._places[place]: each for place, each in found.items()}, changed)


def _changed_logits(
    raw: Tensor, rows: Sequence[SampledRow], masks: Mapping[int, BoolArray], unknown: Tensor | None
) -> Tensor:
    """Bias, penalties and grammars applied, in the order of `SamplingParams`."""
    logits = raw.clone()
    _apply_bias(logits, rows)
    _forbid_early_end(logits, rows, masks)
    penalties = [
        RowPenalties(
            row=i,
            counts=row.token_counts,
            presence=row.sampling.presence_penalty,
            frequency=row.sampling.frequency_penalty,
            repetition=row.sampling.repetition_penalty,
            has_unknown=row.has_unknown,
        )
        for i, row in enumerate(rows)
        if row.token_counts is not None
    ]
    apply_penalties(logits, penalties, unknown)
    _apply_masks(logits, masks)
    return logits


def _draw(rows: Sequence[SampledRow], device: torch.device) -> Draw:
    def column(values: list[float]) -> Tensor:
        return float_tensor(values, device, torch.float64)

    return Draw(
        uniform=column([uniform(r.sampling.seed, r.sampling.choice, r.num_before) for r in rows]),
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
        if row.num_before < row.sampling.min_tokens and row.sampling.end_ids:
            ends = list(row.sampling.end_ids)
            # A grammar that leaves nothing but the end is right: an answer can't be lengthened then.
            if i not in masks or masks[i].sum() > masks[i][ends].sum():
                logits[i, index_tensor(ends, logits.device)] = -torch.inf


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
