"""The half of a step that need not wait for the device: rows are laid out, the forward and the choice of tokens begin."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from sixfold.plugins.llm.batch_layout import BatchLayout
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.drafted_row import sampled_rows
from sixfold.plugins.llm.grammar_masks import GrammarMasks
from sixfold.plugins.llm.pending_step import LaunchedStep
from sixfold.plugins.llm.sampler import PendingSample, begin_sample
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.step_graphs import with_carried
from sixfold.plugins.llm.step_sharing import SharedSpan, share_in_step
from sixfold.plugins.llm.tensors import index_tensor

# Where more than one in so many needs its token before it can go on, a step waits for the one before.
_MAX_SHARE_LOOKING_BACK = 8


class StepLauncher:
    """Begins steps. Owned by the device thread.

    Args:
        decoder: The model and its cache.
        masks: Of its vocabulary.
        begins_steps: Whether steps begin before the one before is handed out; see `StepModel.begins_steps`.
    """

    def __init__(self, decoder: Decoder, masks: GrammarMasks, *, begins_steps: bool) -> None:
        self._decoder = decoder
        self._cache = decoder.cache
        self._masks = masks
        self._begins_steps = begins_steps
        self._chosen: Tensor | None = None  # by the last step, on the device

    def launch(self, sequences: Sequence[SequenceState], units: list[int], *, awaits: bool) -> LaunchedStep:
        """Begins a step. Leaves the sequences as they were if it raises.

        Args:
            sequences: That compute something.
            units: Tokens of each; what another one computes is taken from them.
            awaits: Whether guesses for the step after wait for the tokens of this one.
        """
        for sequence in sequences:
            sequence.suspect = True  # until the logits after its last token prove to be finite
        spans = share_in_step(sequences, units, self._cache)
        began_s = time.perf_counter()
        try:
            step = self._compute(sequences, units, spans, began_s, awaits=awaits)
        except BaseException:
            for span in reversed(spans):
                span.undo(self._cache)
            for sequence in sequences:
                sequence.num_checked = sequence.num_published
            raise
        self._chosen = step.chosen
        step.mark()
        return step

    def _compute(
        self,
        sequences: Sequence[SequenceState],
        units: Sequence[int],
        spans: Sequence[SharedSpan],
        began_s: float,
        *,
        awaits: bool,
    ) -> LaunchedStep:
        with torch.inference_mode():
            layout = self._decoder.lay_out(sequences, units)
            masks = self._masks.begin([sequences[i].grammar for i in layout.sampled])
            logits = self._decoder.forward(layout, self._chosen)
            rows = sampled_rows(sequences, layout.sampled)
            pending: PendingSample | None = None
            if logits is not None and rows:
                unknown = self._unknown([sequences[i] for i in layout.sampled])
                pending = begin_sample(logits[: len(rows)], rows, masks.wait(), unknown)
            # The next step may write over the logits before this one's prompts are judged.
            scored = logits[len(rows) :].clone() if layout.scored and logits is not None else None
            ends = [s.num_begun + n for s, n in zip(sequences, units, strict=True)]
            filled = self._cache.check(sequences, ends)
        could_be_followed, may_be_followed = self._may_be_followed(sequences, layout)
        return LaunchedStep(
            sequences=sequences,
            units=units,
            spans=spans,
            sampled=layout.sampled,
            pending=pending,
            scored=layout.scored,
            scored_logits=scored,
            filled=filled,
            began_s=began_s,
            may_be_followed=not awaits and may_be_followed,
            proposes=awaits or not could_be_followed,
        )

    def _unknown(self, sequences: Sequence[SequenceState]) -> Tensor | None:
        """The tokens in flight of rows whose penalties ask for them."""
        if self._chosen is None or not any(s.num_expected and s.token_counts is not None for s in sequences):
            return None
        carried = index_tensor([s.carried if s.num_expected else -1 for s in sequences], self._chosen.device)
        return with_carried(torch.full_like(carried, -1), carried, self._chosen)

    def _may_be_followed(self, sequences: Sequence[SequenceState], layout: BatchLayout) -> tuple[bool, bool]:
        """Whether the next step may begin before this one is done: if nobody had guesses, and with those that there are.

        Not if this one is started kernel by kernel: that takes the host as long as the device, and only while it waits do
        other threads come to prepare what arrives. Prompts in many small steps, one on top of the other, came to their first
        tokens after 1.7-2.1 s instead of 0.4-0.5 (256 at once, H100).
        """
        if not self._begins_steps or not self._decoder.starts_at_once(layout):
            return False, False
        num_held = num_looking_back = 0
        for sequence in sequences:
            is_held = sequence.grammar is not None
            sequence.looks_back = is_held or bool(sequence.drafts)
            num_held += is_held
            num_looking_back += sequence.looks_back
        # A few may take part in every other step; with many, two half steps by turns would cost twice one whole.
        most = len(sequences) // _MAX_SHARE_LOOKING_BACK
        return num_held <= most, num_looking_back <= most
