"""Guesses with an EAGLE-3 head, which follows every step of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sixfold.plugins.llm.attention import PagedStep
from sixfold.plugins.llm.batch_layout import BatchLayout
from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.drafted_row import DraftedRow
from sixfold.plugins.llm.eagle3_head import Eagle3Head
from sixfold.plugins.llm.hidden_taps import HiddenTaps
from sixfold.plugins.llm.sampler import sample
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.tensors import index_tensor


class _Followed:
    """A sequence as the head sees it: its tokens from the second on, in its own blocks."""

    __slots__ = ("hidden", "row")

    def __init__(self) -> None:
        self.row = CachedTokens(())
        self.hidden: Tensor | None = None  # [dim], behind the last place whose next token is known

    def begin(self, sequence: SequenceState, num_computed: int) -> None:
        """Takes over the sequence's tokens and blocks; the head has computed so many places."""
        row = self.row
        row.token_ids.extend(sequence.token_ids[len(row.token_ids) + 1 :])
        row.block_table, row.num_blocks = sequence.block_table, sequence.num_blocks
        row.num_computed = num_computed

    def add_guess(self, token_id: int) -> None:
        """One more place, with a token that is guessed."""
        self.row.token_ids.append(token_id)
        self.row.num_computed = len(self.row.token_ids) - 1

    def forget_guesses(self, sequence: SequenceState) -> None:
        """The tokens are those that are known again."""
        del self.row.token_ids[len(sequence.token_ids) - 1 :]


class _Run:
    """The guesses of one sequence while they are made."""

    __slots__ = ("drafts", "followed", "limit", "sequence")

    def __init__(self, sequence: SequenceState, followed: _Followed, limit: int) -> None:
        self.sequence = sequence
        self.followed = followed
        self.limit = limit
        self.drafts: list[int] = []
        followed.row.block_table, followed.row.num_blocks = sequence.block_table, sequence.num_blocks


class Eagle3Proposer:
    """Proposes what the head would sample in the sequence's place, by the same random numbers.

    Args:
        decoder: The model and its cache, in which the head has a layer.
        head: The head.
        taps: Of the model's hidden states.
    """

    learns_from_every_step = True

    def __init__(self, decoder: Decoder, head: Eagle3Head, taps: HiddenTaps) -> None:
        self._decoder = decoder
        self._head = head
        self._taps = taps
        self._followed: dict[SequenceState, _Followed] = {}

    def follow(self, sequences: Sequence[SequenceState]) -> None:
        """Computes the head for all places that the step has computed for good, whether or not it shall guess: cached
        prefixes are to hold its part, too."""
        taken = self._taps.take()
        if taken is None:
            return
        step, features = taken
        places, first_rows = _first_rows(step)
        chosen: list[tuple[_Followed, int, int]] = []  # with its first place and the row of that
        units: list[int] = []
        for place, first_row in zip(places, first_rows, strict=True):
            sequence = sequences[place]
            begin = int(step.contexts.lengths[first_row]) - 1
            followed = self._followed.setdefault(sequence, _Followed())
            followed.hidden = None
            if sequence.num_computed > begin:  # else the step has failed for it
                followed.begin(sequence, begin)
                chosen.append((followed, begin, first_row))
                units.append(sequence.num_computed - begin)
        if not chosen:
            return
        layout = self._decoder.lay_out([followed.row for followed, _, _ in chosen], units)
        owners, at = layout.contexts.sequences, layout.contexts.lengths - 1
        begins, rows = (np.array([item[column] for item in chosen]) for column in (1, 2))
        source = index_tensor((rows[owners] + at - begins[owners]).tolist(), features.device)
        with torch.inference_mode():
            hidden = self._forward(layout, self._head.fuse(features[source]))
        for place, last in zip(layout.sampled, hidden[layout.logit_rows.to(hidden.device)], strict=True):
            chosen[place][0].hidden = last

    def propose(self, sequences: Sequence[SequenceState], limits: Sequence[int]) -> list[list[int]]:
        """Up to ``limits`` tokens for each sequence; fewer without room for the head's own places."""
        runs = [
            _Run(sequence, followed, self._room(sequence, limit))
            for sequence, limit in zip(sequences, limits, strict=True)
            if (followed := self._followed.get(sequence)) is not None and followed.hidden is not None
        ]
        try:
            with torch.inference_mode():
                self._guess(runs)
        finally:
            for run in runs:
                run.followed.forget_guesses(run.sequence)
        found = {run.sequence: run.drafts for run in runs}
        return [found.get(sequence, []) for sequence in sequences]

    def release(self, sequence: SequenceState) -> None:
        """Forgets a sequence; its blocks are the model's business."""
        self._followed.pop(sequence, None)

    def _room(self, sequence: SequenceState, limit: int) -> int:
        # The last draft needs no place: nothing is guessed from it.
        return min(limit, self._decoder.cache.reserve(sequence, limit - 1) + 1) if limit > 1 else limit

    def _guess(self, runs: list[_Run]) -> None:
        if not runs:
            return
        hidden = torch.stack([run.followed.hidden for run in runs if run.followed.hidden is not None])
        while True:
            rows = [DraftedRow(run.sequence, run.drafts) for run in runs]
            tokens = sample(self._head.logits(hidden), rows)
            going: list[int] = []
            for i, (run, token) in enumerate(zip(runs, tokens, strict=True)):
                if token.token_id is not None:
                    run.drafts.append(token.token_id)
                    if len(run.drafts) < run.limit:
                        going.append(i)
            if not going:
                return
            for i in going:
                runs[i].followed.add_guess(runs[i].drafts[-1])
            layout = self._decoder.lay_out([runs[i].followed.row for i in going], [1] * len(going))
            # The rows of a layout have an order of their own.
            places: list[int] = layout.contexts.sequences.tolist()
            order = [going[place] for place in places]
            hidden = self._forward(layout, hidden[index_tensor(order, hidden.device)])
            runs = [runs[i] for i in order]

    def _forward(self, layout: BatchLayout, hidden: Tensor) -> Tensor:
        layout = self._decoder.on_device(layout)
        step = PagedStep(layout=layout, caches=self._decoder.cache.layers)
        result: Tensor = self._head(layout.token_ids, layout.position_ids, hidden, step)
        return result


def _first_rows(layout: BatchLayout) -> tuple[list[int], list[int]]:
    """The sequences of a step, and the first row of each."""
    unique: Any = np.unique(layout.contexts.sequences, return_index=True)
    return unique[0].tolist(), unique[1].tolist()
