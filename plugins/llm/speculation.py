"""Guesses tokens ahead; the model verifies several in one step, which on a small batch costs hardly more than one.

A guess never changes an answer. At each place the next token is sampled as it would be without guesses, from the same
logits by the same random number (`randomness`), and the guess is right if it is that token. For a guess that depends on no
chance of its own this is speculative sampling by rejection: it is accepted with the model's probability, and what comes
instead of a wrong one has the distribution of the rest. Beyond that the answer is the same token for token with and
without guesses, so it does not depend on how many others were in the batch.

Source: Leviathan et al. 2023, section 2.3.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from sixfold.core.decisions import DecisionLog
from sixfold.plugins.llm.guess_choice import GuessChoice
from sixfold.plugins.llm.ngram import NgramProposer
from sixfold.plugins.llm.options import SpeculationOptions
from sixfold.plugins.llm.row_cost import RowCost
from sixfold.plugins.llm.sequence import SequenceState

_LOG = logging.getLogger(__name__)

# Of the mean length that is told: a memory of about fifty guesses.
_BLEND = 0.02
_WORTH_TELLING = 0.25


class Proposer(Protocol):
    """Guesses how sequences go on. Called on the device thread, after a step.

    Attributes:
        learns_from_every_step: Whether `follow` must hear of each step before the next one begins.
    """

    learns_from_every_step: bool

    def follow(self, sequences: Sequence[SequenceState]) -> None:
        """Learns what a step has computed, of all its sequences; called before `propose`, and also where nobody guesses."""
        ...

    def propose(self, sequences: Sequence[SequenceState], limits: Sequence[int]) -> Sequence[Sequence[int]]:
        """Up to ``limits`` tokens for each sequence; may be none. What it guesses must not depend on the batch."""
        ...

    def release(self, sequence: SequenceState) -> None:
        """The sequence is gone or was preempted: gives back what is held for it."""
        ...


class Speculator:
    """Decides which sequences get how many drafts. Owned by the device thread.

    Args:
        proposer: Guesses; None for no drafts at all.
        num_tokens: Most drafts of a sequence per step.
        max_sequences: Steps of more sequences have no drafts.

    Attributes:
        decisions: Told where the number of guesses has got to.
    """

    def __init__(self, proposer: Proposer | None, *, num_tokens: int, max_sequences: int) -> None:
        self._proposer = proposer
        self._num_tokens = num_tokens
        self._max_sequences = max_sequences
        self._num_drafts = self._num_draft_tokens = self._num_accepted_tokens = 0
        self._mean_length = float(num_tokens)
        self._row_cost = RowCost()
        self._choice = GuessChoice()
        self._has_before = False  # whether the step before was one that decodes, too
        self._accepted_before = 0
        self.decisions = DecisionLog()

    def awaits(self, num_sequences: int) -> bool:
        """Whether a step of so many sequences must be done before the next one: its guesses start from what it brings."""
        if self._proposer is None or self._proposer.learns_from_every_step:
            return self._proposer is not None
        return num_sequences <= self._max_sequences and self._choice.guesses(num_sequences)

    def propose(self, sequences: Sequence[SequenceState]) -> None:
        """Gives drafts to the sequences of a step that go on, for their next one."""
        if self._proposer is None or not self._follow(self._proposer, sequences):
            return
        if not sequences or len(sequences) > self._max_sequences:
            return
        chosen: list[SequenceState] = []
        limits: list[int] = []
        cost = self.guess_cost(len(sequences))
        for sequence in sequences:
            limit = self._limit(sequence, len(sequences), cost)
            if limit > 0:
                chosen.append(sequence)
                limits.append(limit)
        if not chosen:
            return
        try:
            proposed = self._proposer.propose(chosen, limits)
        except Exception:  # the step is done and its tokens are on their way: a failed guess must not repeat it
            self._give_up()
            return
        for sequence, drafts in zip(chosen, proposed, strict=True):
            sequence.drafts = drafts

    def _follow(self, proposer: Proposer, sequences: Sequence[SequenceState]) -> bool:
        try:
            proposer.follow(sequences)
        except Exception:  # as in `propose`
            self._give_up()
            return False
        return True

    def _give_up(self) -> None:
        _LOG.exception("guessing ahead failed; the model goes on without")
        self._proposer = None

    def guess_cost(self, num_sequences: int) -> float:
        """What a guess takes of what it saves where it is right, in a step of so many sequences; see `RowCost`."""
        return self._row_cost.of_guess(num_sequences)

    def observe_step(self, sequences: Sequence[SequenceState], units: Sequence[int], seconds: float) -> None:
        """Learns how long a step took that nothing ran beside.

        Args:
            sequences: Of the step, as they were before it.
            units: Tokens that it computed of each.
            seconds: It took.
        """
        if self._proposer is None or len(sequences) > self._max_sequences:
            return
        if all(sequence.num_computed >= sequence.num_prompt_tokens for sequence in sequences):
            self._row_cost.observe(sum(units), seconds)

    def measures(self, sequences: Sequence[SequenceState]) -> bool:
        """Whether `observe_pace` learns from a step: it only decodes, and may have guesses. Asked before its tokens are taken."""
        learns = (
            self._proposer is not None
            and not self._proposer.learns_from_every_step
            and len(sequences) <= self._max_sequences
            and all(sequence.num_computed >= sequence.num_prompt_tokens for sequence in sequences)
        )
        if not learns:
            self._has_before = False
        self._accepted_before = self._num_accepted_tokens
        return learns

    def observe_pace(self, num_sequences: int, *, guessed: bool, seconds: float) -> None:
        """Learns how fast tokens come.

        Args:
            num_sequences: Of a step of which `measures` has said so.
            guessed: Whether the step after it waited for its tokens.
            seconds: Since the step before it was done.
        """
        had_before, self._has_before = self._has_before, True
        if not had_before:
            return
        num_tokens = num_sequences + self._num_accepted_tokens - self._accepted_before
        if not self._choice.observe(num_sequences, guessed=guessed, num_tokens=num_tokens, seconds=seconds):
            return
        with_guesses, ahead = self._choice.seconds(num_sequences)
        before, after = ("steps ahead", "guesses") if with_guesses < ahead else ("guesses", "steps ahead")
        self.decisions.changed(
            "guesses_or_steps_ahead",
            before,
            after,
            f"with {num_sequences} sequences, tokens of each come {1e3 * with_guesses:.2f} ms apart with guesses and "
            f"{1e3 * ahead:.2f} ms with steps ahead",
            objective="tokens a second",
        )

    def step_failed(self) -> None:
        """A step was not done, or not at once: what was before the next one says nothing."""
        self._has_before = False

    def observe(self, sequence: SequenceState, num_drafts: int, num_accepted: int) -> None:
        """Learns how many of a sequence's drafts were right."""
        if num_drafts:
            sequence.draft_pace.observe(num_drafts, num_accepted)
            self._num_drafts += 1
            self._num_draft_tokens += num_drafts
            self._num_accepted_tokens += num_accepted

    def release(self, sequence: SequenceState) -> None:
        """The sequence is gone or was preempted."""
        if self._proposer is not None:
            self._proposer.release(sequence)

    def stats(self) -> Mapping[str, float]:
        """Values of the metrics ``spec_decode_*``."""
        return {
            "spec_decode_num_drafts_total": self._num_drafts,
            "spec_decode_num_draft_tokens_total": self._num_draft_tokens,
            "spec_decode_num_accepted_tokens_total": self._num_accepted_tokens,
        }

    def _limit(self, sequence: SequenceState, num_sequences: int, cost: float) -> int:
        goes_on = sequence.may_draft and sequence.finish_reason is None and sequence.num_uncomputed == 1
        limit = min(self._num_tokens, sequence.num_left)
        if not goes_on or limit < 1:
            return 0
        length = sequence.draft_pace.next_length(limit, cost=cost)
        self._tell(length, sequence.draft_pace.acceptance, num_sequences, cost)
        return length

    def _tell(self, length: int, acceptance: float, num_sequences: int, cost: float) -> None:
        """Each sequence has a length of its own; what is told is where their mean has got to."""
        self._mean_length += _BLEND * (length - self._mean_length)
        self.decisions.moved(
            "draft_tokens",
            round(self._mean_length, 1),
            lambda: (
                f"{acceptance:.0%} of a sequence's guesses were right lately, {num_sequences} share a step, and one "
                f"takes {cost:.0%} of what it saves if it is right"
            ),
            objective=f"tokens a second; 0..{self._num_tokens} guesses",
            least=_WORTH_TELLING,
        )


def make_speculator(options: SpeculationOptions, proposer: Proposer | None = None) -> Speculator:
    """What the options ask for.

    Args:
        options: Of the model.
        proposer: The smaller model or the head, if they name one.
    """
    if options.method == "ngram":
        proposer = NgramProposer(min_match=options.min_match, max_match=options.max_match)
    return Speculator(proposer, num_tokens=options.num_tokens, max_sequences=options.max_sequences)
