"""Takes a step's tokens into their sequences: the next token, accepted drafts, what a grammar turns down."""

from __future__ import annotations

from collections.abc import Sequence

from sixfold.core.batching.model import Outcome
from sixfold.plugins.llm.generation import Generation, TextDelta
from sixfold.plugins.llm.kv_cache import KvCache
from sixfold.plugins.llm.logprobs import RowLogprobs
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.speculation import Speculator
from sixfold.plugins.llm.step_failures import step_failed
from sixfold.plugins.llm.token_describer import TokenDescriber

_NOTHING: Outcome[TextDelta | Generation] = Outcome()


class TokenIntake:
    """Owned by the device thread.

    Args:
        cache: Of the sequences.
        describer: Of tokens, for log probabilities.

    Attributes:
        num_prompt_tokens: Computed so far.
        num_generated_tokens: So far.
    """

    def __init__(self, cache: KvCache, describer: TokenDescriber) -> None:
        self._cache = cache
        self._describer = describer
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0

    def take(
        self,
        sequence: SequenceState,
        num_units: int,
        sampled: Sequence[int],
        logprobs: Sequence[RowLogprobs | None] | None,
        speculator: Speculator,
    ) -> Outcome[TextDelta | Generation]:
        """Says what a step brought to a sequence.

        Args:
            sequence: Of the step; its ``num_computed`` is that before it.
            num_units: Tokens that the step computed.
            sampled: The tokens that it chose: the next, and one behind each draft.
            logprobs: Of these, where they are wanted.
            speculator: Hears how its drafts fared.
        """
        begin = sequence.num_computed
        end = begin + num_units
        if begin < sequence.num_prompt_tokens:
            self.num_prompt_tokens += min(end, sequence.num_prompt_tokens) - begin
        if not sampled:
            sequence.num_computed = end
            return _NOTHING
        if sequence.grammar is None and not sequence.drafts and sampled[0] >= 0:
            found = None if logprobs is None else logprobs[0]
            sequence.append(sampled[0], None if found is None else self._describer.describe(sampled[0], found))
            sequence.num_computed = end
            self.num_generated_tokens += 1
            return self._outcome(sequence)
        return self._take_guessed(sequence, end, sampled, logprobs, speculator)

    def _take_guessed(
        self,
        sequence: SequenceState,
        end: int,
        sampled: Sequence[int],
        logprobs: Sequence[RowLogprobs | None] | None,
        speculator: Speculator,
    ) -> Outcome[TextDelta | Generation]:
        """Takes in tokens that drafts or a grammar may turn down."""
        begin = sequence.num_computed
        drafts, sequence.drafts = sequence.drafts[: len(sampled) - 1], ()
        if drafts or sequence.grammar is not None:
            sequence.num_checked = sequence.num_published  # what is not accepted will be filled again
        if drafts and min(sampled) < 0:
            # A masked value that is not finite spoils the rows before it as well: without drafts it will show whether
            # the sequence itself is to blame.
            self._cache.erase(sequence, begin, end)
            sequence.suspect = sequence.may_draft = False
            return _NOTHING
        num_output = sequence.num_output_tokens
        num_accepted = 0
        for at, token_id in enumerate(sampled):
            failure = None if sequence.grammar is None else sequence.grammar.failure
            if token_id < 0 or failure is not None:
                return Outcome(done=True, error=step_failed(sequence, failure))
            found = None if logprobs is None else logprobs[at]
            logprob = None if found is None else self._describer.describe(token_id, found)
            if not sequence.append(token_id, logprob):
                num_accepted -= 1  # the token before is computed again, now with the grammar's mask
                break
            # Drafts behind the begin of a grammar were sampled without its mask.
            is_next = at < len(drafts) and token_id == drafts[at]
            if sequence.finish_reason is not None or not is_next or sequence.is_constrained:
                break
            num_accepted += 1
        # What lies behind belongs to wrong drafts and will be written over.
        sequence.num_computed = end - len(drafts) + num_accepted
        self.num_generated_tokens += sequence.num_output_tokens - num_output
        speculator.observe(sequence, len(drafts), max(num_accepted, 0))
        return self._outcome(sequence)

    def _outcome(self, sequence: SequenceState) -> Outcome[TextDelta | Generation]:
        """What a step with a token brings."""
        sequence.suspect = sequence.num_in_flight > 0
        return Outcome(output=sequence.take_delta(), done=sequence.finish_reason is not None)
