"""A step of the native runtime that the device computes: what was asked of it, and how it is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sixfold.core.batching.model import Granted, Outcome, PendingStep
from sixfold.plugins.llm.generation import Generation, TextDelta
from sixfold.plugins.llm.kv_cache import FilledBlocks, KvCache
from sixfold.plugins.llm.rows import ScoredSpan
from sixfold.plugins.llm.sampler import PendingSample
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.step_failures import unseen
from sixfold.plugins.llm.step_sharing import SharedSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedStep:
    """What the device was given.

    Attributes:
        sequences: That compute something.
        units: Tokens of each.
        spans: What some of them do not compute because another does.
        sampled: See `BatchLayout.sampled`.
        pending: Their next tokens; None if none is chosen.
        scored: Places of prompts that are judged.
        scored_logits: Of these; None if there are none.
        filled: The blocks that the step fills.
        began_s: When it began, by ``time.perf_counter``.
        may_be_followed: See `PendingStep.may_be_followed`.
        proposes: Whether tokens are guessed after it: not where the next step was to begin ahead, and only guesses of before
            kept it from that.
        restarts: ``num_restarts`` of each sequence when the step began.
        expected: How many tokens each will have more.
    """

    sequences: Sequence[SequenceState]
    units: Sequence[int]
    spans: Sequence[SharedSpan]
    sampled: Sequence[int]
    pending: PendingSample | None
    scored: Sequence[ScoredSpan]
    scored_logits: Tensor | None
    filled: FilledBlocks
    began_s: float
    may_be_followed: bool
    proposes: bool
    restarts: list[int] = field(default_factory=list[int])
    expected: list[int] = field(default_factory=list[int])

    @property
    def chosen(self) -> Tensor | None:
        """The tokens that it chooses, on the device."""
        return None if self.pending is None else self.pending.tokens

    def first_row(self, index: int) -> int:
        """Where a sequence's tokens begin among `sampled`."""
        return self.sampled.index(index)

    def mark(self) -> None:
        """Tells the sequences what is in flight for them."""
        self.restarts.extend([sequence.num_restarts for sequence in self.sequences])
        self.expected.extend([0] * len(self.sequences))
        for row in range(len(self.sampled) - 1, -1, -1):  # its first row, if there are drafts
            index = self.sampled[row]
            self.sequences[index].carried = row
            self.expected[index] = 1
        for sequence, units, expected in zip(self.sequences, self.units, self.expected, strict=True):
            sequence.num_in_flight += units
            sequence.num_expected += expected

    def unmark(self) -> list[bool]:
        """Takes `mark` back; whether the step counts for each sequence: it was not preempted or released meanwhile."""
        is_there = [s.num_restarts == then for s, then in zip(self.sequences, self.restarts, strict=True)]
        for sequence, units, expected, there in zip(self.sequences, self.units, self.expected, is_there, strict=True):
            if there:
                sequence.num_in_flight -= units
                sequence.num_expected -= expected
        return is_there

    def abandon(self, cache: KvCache) -> None:
        """Makes the sequences what they were before the step."""
        for sequence, there in zip(self.sequences, self.unmark(), strict=True):
            if there:
                sequence.num_checked = sequence.num_published
        for span in reversed(self.spans):
            span.undo(cache)


class PendingTokens(PendingStep[TextDelta | Generation]):
    """The step as the core holds it.

    Args:
        batch: The granted sequences.
        units: Tokens of each; 0 for one that waits for an image.
        step: Of the others; None if there are none.
        settle: Takes in what it computed; one outcome for each of its sequences.
        cache: Of the sequences.
    """

    def __init__(
        self,
        batch: Sequence[Granted[SequenceState]],
        units: Sequence[int],
        step: LaunchedStep | None,
        settle: Callable[[LaunchedStep], Sequence[Outcome[TextDelta | Generation]]],
        cache: KvCache,
    ) -> None:
        self._batch = batch
        self._units = units
        self._step = step
        self._settle = settle
        self._cache = cache

    @property
    def may_be_followed(self) -> bool:
        """Whether enough of the sequences can go on without knowing their next tokens."""
        return self._step is not None and self._step.may_be_followed

    def finish(self) -> Sequence[Outcome[TextDelta | Generation]]:
        """Waits for the tokens and takes them in."""
        outcomes = () if self._step is None else self._settle(self._step)
        if len(outcomes) == len(self._batch):
            return outcomes
        found = iter(outcomes)
        pairs = zip(self._batch, self._units, strict=True)
        return [next(found) if n else unseen(granted.sequence) for granted, n in pairs]

    def abandon(self) -> None:
        """Makes the sequences what they were before the step."""
        if self._step is not None:
            self._step.abandon(self._cache)
