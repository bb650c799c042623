"""Waits for a step that the device computes and hands what it made to the sequences, the cache and those who watch it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from sixfold.core.batching.model import Outcome
from sixfold.plugins.llm.generation import Generation, TextDelta, TokenLogprob
from sixfold.plugins.llm.kv_announcer import KvAnnouncer
from sixfold.plugins.llm.kv_cache import KvCache
from sixfold.plugins.llm.kv_transfer import KvTransfer
from sixfold.plugins.llm.pending_step import LaunchedStep
from sixfold.plugins.llm.prompt_scores import score_prompts
from sixfold.plugins.llm.sampler import NO_ROWS
from sixfold.plugins.llm.speculation import Speculator
from sixfold.plugins.llm.token_describer import TokenDescriber
from sixfold.plugins.llm.token_intake import TokenIntake

_NOTHING: Outcome[TextDelta | Generation] = Outcome()


class StepSettler:
    """Owned by the device thread.

    Args:
        cache: Of the sequences.
        describer: Of tokens, for log probabilities.
        events: Announces cached prefixes; None if nobody is told.
        transfer: Is offered computed prompts; None if there are no other processes.

    Attributes:
        intake: Counts the tokens.
    """

    def __init__(
        self, cache: KvCache, describer: TokenDescriber, *, events: KvAnnouncer | None, transfer: KvTransfer | None
    ) -> None:
        self._cache = cache
        self._describer = describer
        self._events = events
        self._transfer = transfer
        self.intake = TokenIntake(cache, describer)
        self._waited_s = 0.0  # when the device was last waited for, by ``time.perf_counter``

    def settle(self, step: LaunchedStep, speculator: Speculator) -> list[Outcome[TextDelta | Generation]]:
        """Waits for the step and takes in what it has computed: one outcome for each of its sequences.

        Args:
            step: Launched; the one before is settled.
            speculator: Hears how its drafts fared, and guesses for the next step unless that has begun.

        Raises:
            Exception: The device's or a grammar's; the sequences are what they were before the step.
        """
        sequences, units = step.sequences, step.units
        try:
            found = NO_ROWS if step.pending is None else step.pending.wait()
            filled = step.filled.wait()
            scores = self._scores(step)
        except BaseException:
            step.abandon(self._cache)
            speculator.step_failed()
            raise
        # A step in flight waited for the one before: the device was busy with it only since then.
        before_s = self._waited_s
        began_s = max(step.began_s, before_s)
        self._waited_s = time.perf_counter()
        has_pace = speculator.measures(sequences)
        if step.pending is not None and not step.may_be_followed:
            self._learn_time(step, self._waited_s - began_s, speculator)
        # Nothing above has changed a sequence: had it failed, the core could repeat it. From here on nothing fails.
        for span in step.spans:
            span.keep(self._cache)
        tokens: dict[int, list[int]] = {}
        for i, token_id in zip(step.sampled, found.token_ids, strict=True):
            tokens.setdefault(i, []).append(token_id)
        is_there = step.unmark()
        logprobs = found.logprobs
        outcomes: list[Outcome[TextDelta | Generation]] = []
        for i, sequence in enumerate(sequences):
            if not is_there[i]:
                outcomes.append(_NOTHING)
                continue
            if i in scores:
                sequence.add_scores(sequence.num_computed, scores[i])
            own = tokens.get(i, ())
            its_logprobs = [logprobs.get(step.first_row(i) + at) for at in range(len(own))] if logprobs else None
            outcomes.append(self.intake.take(sequence, units[i], own, its_logprobs, speculator))
            if filled and filled[i][1] and sequence.num_blocks:
                self._cache.publish_checked(sequence, *filled[i])
            # Behind that, since only what is published is offered.
            if sequence.finish_reason is not None and sequence.wants_kv_handle and self._transfer is not None:
                sequence.kv_handle = self._transfer.offer(sequence, sequence.num_prompt_tokens)
        for row in found.changed:
            sequences[step.sampled[row]].drop_in_flight()
        if has_pace:
            speculator.observe_pace(len(sequences), guessed=not step.may_be_followed, seconds=self._waited_s - before_s)
        if step.proposes:
            speculator.propose([s for s, there in zip(sequences, is_there, strict=True) if there])
        if self._events is not None:
            self._events.flush()
        return outcomes

    def _learn_time(self, step: LaunchedStep, seconds: float, speculator: Speculator) -> None:
        """Of a step that the device was waited for, and for it alone."""
        tier = self._cache.tier
        if tier is not None:
            tier.observe_step(step.units, seconds)
        speculator.observe_step(step.sequences, step.units, seconds)

    def _scores(self, step: LaunchedStep) -> Mapping[int, Sequence[TokenLogprob]]:
        if step.scored_logits is None:
            return {}
        return score_prompts(step.scored_logits, step.sequences, step.scored, self._describer)
