"""Guesses with a smaller model of the same tokenizer, which has a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.drafted_row import DraftedRow
from sixfold.plugins.llm.sampler import sample
from sixfold.plugins.llm.sequence import SequenceState

# A long prompt is caught up with in parts, a part a step: it must not hold up the sequences that run.
_MAX_CATCH_UP_TOKENS = 256


class _Draft:
    """A sequence as the smaller model knows it: its tokens, and behind them those that were guessed last."""

    __slots__ = ("limit", "num_known", "row", "sequence")

    def __init__(self, sequence: SequenceState) -> None:
        self.sequence = sequence
        self.row = CachedTokens(())
        self.num_known = 0
        self.limit = 0

    @property
    def tokens(self) -> list[int]:
        """What was guessed."""
        return self.row.token_ids[self.num_known :]

    def begin(self, limit: int) -> None:
        """Takes in what was decided since the last guesses: what follows the first wrong one is computed again."""
        row, known = self.row, self.sequence.token_ids
        same = self.num_known
        while same < min(len(row.token_ids), len(known)) and row.token_ids[same] == known[same]:
            same += 1
        row.token_ids[same:] = known[same:]
        row.num_computed = min(row.num_computed, same, len(known) - 1)
        self.num_known = len(known)
        self.limit = limit


class DraftModelProposer:
    """Proposes what the smaller model would sample in the sequence's place, by the same random numbers.

    Args:
        decoder: The smaller model and its cache.
        vocab_size: Tokens that the other model knows; its own head may be larger.
        max_model_len: The longest text that it can continue.
    """

    learns_from_every_step = True

    def __init__(self, decoder: Decoder, *, vocab_size: int, max_model_len: int) -> None:
        self._decoder = decoder
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._drafts: dict[SequenceState, _Draft] = {}

    def follow(self, sequences: Sequence[SequenceState]) -> None:
        """Sequences are caught up with when they are guessed for."""

    def propose(self, sequences: Sequence[SequenceState], limits: Sequence[int]) -> list[list[int]]:
        """Up to ``limits`` tokens for each sequence; none while its prompt is caught up with, or without room for it."""
        drafts = [self._drafts.setdefault(sequence, _Draft(sequence)) for sequence in sequences]
        for draft, limit in zip(drafts, limits, strict=True):
            draft.begin(min(limit, self._max_model_len - len(draft.sequence.token_ids)))
        going = [draft for draft in drafts if self._catch_up(draft)]
        while going:
            self._step(going)
            going = [draft for draft in going if len(draft.tokens) < draft.limit]
        return [draft.tokens for draft in drafts]

    def release(self, sequence: SequenceState) -> None:
        """Gives back the blocks that were held for a sequence."""
        draft = self._drafts.pop(sequence, None)
        if draft is not None:
            self._decoder.cache.free(draft.row)

    def _catch_up(self, draft: _Draft) -> bool:
        """Makes room and computes all but the last parts of a long gap; False if there are no drafts this time."""
        cache, row = self._decoder.cache, draft.row
        if draft.limit < 1:
            return False
        wanted = row.num_uncomputed + draft.limit - 1
        if row.num_uncomputed > _MAX_CATCH_UP_TOKENS:
            if cache.reserve(row, _MAX_CATCH_UP_TOKENS) == _MAX_CATCH_UP_TOKENS:
                self._forward([row], [_MAX_CATCH_UP_TOKENS])
                row.num_computed += _MAX_CATCH_UP_TOKENS
            return False
        if cache.reserve(row, row.num_uncomputed) < row.num_uncomputed:
            return False
        draft.limit = min(draft.limit, cache.reserve(row, wanted) - row.num_uncomputed + 1)
        return True

    def _step(self, going: list[_Draft]) -> None:
        rows = [draft.row for draft in going]
        units = [row.num_uncomputed for row in rows]
        logits, order = self._forward(rows, units)
        assert logits is not None, "all rows are computed to their end"
        with torch.inference_mode():
            tokens = sample(
                logits[:, : self._vocab_size], [DraftedRow(going[i].sequence, going[i].tokens) for i in order]
            )
        for i, token in zip(order, tokens, strict=True):
            draft = going[i]
            draft.row.num_computed += units[i]
            if token.token_id is None:
                draft.limit = len(draft.tokens)
                self.release(draft.sequence)  # while it is suspect: its blocks are cleared
            else:
                draft.row.suspect = False
                draft.row.token_ids.append(token.token_id)

    def _forward(
        self, rows: Sequence[CachedTokens], units: Sequence[int]
    ) -> tuple[torch.Tensor | None, tuple[int, ...]]:
        """Logits of the rows that are computed to their end, and which these are."""
        for row in rows:
            row.suspect = True
        decoder = self._decoder
        layout = decoder.lay_out(rows, units)
        with torch.inference_mode():
            return decoder.forward(layout), layout.sampled
