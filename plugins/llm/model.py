"""The native runtime as the core sees it: a `StepModel` whose unit is one token."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from sixfold.core.batching.model import Finish, Granted, ModelInfo, Outcome, PendingStep, StepModel, StepRange
from sixfold.core.decisions import DecisionLog
from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Cost, Request
from sixfold.plugins.llm.batch_layout import BatchLayout
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.drafted_row import sampled_rows
from sixfold.plugins.llm.generation import (
    ChatInput,
    Choice,
    CompletionInput,
    Generation,
    TextDelta,
    TokenLogprob,
)
from sixfold.plugins.llm.grammar_masks import GrammarMasks
from sixfold.plugins.llm.kv_announcer import KvAnnouncer
from sixfold.plugins.llm.kv_transfer import NO_TRANSFERS, KvTransfer
from sixfold.plugins.llm.logprobs import RowLogprobs
from sixfold.plugins.llm.lora_table import AdapterTable
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.pending_step import LaunchedStep, PendingTokens
from sixfold.plugins.llm.prepare import Preparer, estimate_tokens, split_input
from sixfold.plugins.llm.prompt_scores import MAX_SCORED_TOKENS, score_prompts
from sixfold.plugins.llm.sampler import NO_ROWS, PendingSample, begin_sample
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.speculation import Speculator
from sixfold.plugins.llm.step_failures import step_failed
from sixfold.plugins.llm.step_graphs import with_carried
from sixfold.plugins.llm.step_sharing import SharedSpan, share_in_step
from sixfold.plugins.llm.tensors import index_tensor
from sixfold.plugins.llm.token_describer import TokenDescriber
from sixfold.plugins.llm.vision import NO_IMAGES, VisionTower

_LOG = logging.getLogger(__name__)

# Where more than one in so many needs its token before it can go on, a step waits for the one before.
_MAX_SHARE_LOOKING_BACK = 8

# A 1B model computes so many in 39 ms on an H100; more make decoding wait and the activations large.
_GPU_STEP_TOKENS = 8192

_ONE_TOKEN = Cost(units=1, min_units=1)
_NOTHING: Outcome[Any] = Outcome()


class TransformersModel(StepModel[SequenceState, ChatInput | CompletionInput, TextDelta | Generation]):
    """Runs any decoder of transformers with in-flight batching.

    The one rule: a sequence has known tokens (prompt and answer) and computed ones, and asks for the gap. A prompt is a
    large gap and may be cut anywhere; generation is a gap of one; preemption makes all of it a gap again.

    Args:
        decoder: The model and its cache.
        preparer: Makes its sequences.
        describer: Of its tokens, for log probabilities.
        info: Facts about it.
        masks: Of its vocabulary.
        speculator: Guesses tokens ahead.
        events: Announces cached prefixes; None if nobody is told.
        transfer: Exchanges computed prompts with other processes; None if there are none.
        vision: Looks at images; None if the model reads text only.
        tokens_per_image: What an image is taken for in admission.
        adapters: Over the model; None if it can have none.
        begins_steps: Whether steps begin before the one before is handed out; see `StepModel.begins_steps`.
    """

    def __init__(
        self,
        *,
        decoder: Decoder,
        preparer: Preparer,
        describer: TokenDescriber,
        info: ModelInfo,
        masks: GrammarMasks,
        speculator: Speculator,
        events: KvAnnouncer | None = None,
        transfer: KvTransfer | None = None,
        vision: VisionTower | None = None,
        tokens_per_image: int = 0,
        adapters: AdapterTable | None = None,
        begins_steps: bool = False,
    ) -> None:
        self._decoder = decoder
        self._cache = decoder.cache
        self._preparer = preparer
        self._describer = describer
        self._info = info
        self._masks = masks
        self._speculator = speculator
        self._events = events
        self._transfer = transfer
        self._vision = vision
        self._tokens_per_image = tokens_per_image
        self._adapters = adapters
        self._begins_steps = begins_steps
        self._chosen: Tensor | None = None  # by the last step, on the device
        self._waited_s = 0.0  # when the device was last waited for, by ``time.perf_counter``
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0

    @property
    def step_range(self) -> StepRange:
        """On a GPU prompts are computed in large chunks from the start: small ones would leave it idle."""
        if self._decoder.device.type == "cpu":
            return StepRange()
        return StepRange(initial_units=_GPU_STEP_TOKENS, max_units=2 * _GPU_STEP_TOKENS)

    @property
    def info(self) -> ModelInfo:
        """Facts about the loaded model."""
        return self._info

    def estimate_units(self, request: Request[ChatInput | CompletionInput]) -> int:
        """Guesses tokens from text lengths."""
        return estimate_tokens(request.input, self._info.max_model_len or 1, self._tokens_per_image)

    def split(self, request: Request[ChatInput | CompletionInput]) -> Sequence[object]:
        """One piece per prompt."""
        return split_input(request.input)

    def prepare(self, request: Request[ChatInput | CompletionInput], piece: object) -> Sequence[SequenceState]:
        """Tokenizes one prompt; one sequence per choice. Waits for the prompt's blocks if another process has them."""
        sequences = self._preparer.prepare(request.input, piece, tenant=request.tenant)
        wanted = request.input.kv_transfer
        if wanted is not None:
            if self._transfer is None:
                raise InvalidRequest(
                    "This model exchanges no prompts. Set its option kv_transfer, or leave out 'kv_transfer_params'.",
                    param="kv_transfer_params",
                )
            self._transfer.prepare(wanted, sequences)
        return sequences

    def adjust(self, options: BaseModel) -> None:
        """Loads and forgets adapters; requests that run keep theirs to their end.

        Raises:
            ConfigError: An adapter can't be loaded.
        """
        assert isinstance(options, TransformersOptions) and options.lora is not None and self._adapters is not None
        self._adapters.follow(options.lora)

    def attach(self, wake: Callable[[], None]) -> None:
        """Transfers between processes need the device's time without a request; images are looked at beside the steps."""
        if self._vision is not None:
            self._vision.attach(wake)
        if self._transfer is not None:
            self._transfer.attach(wake)

    def collect(self) -> Sequence[tuple[SequenceState, Outcome[TextDelta | Generation]]]:
        """Does what transfers wait for; sequences do nothing outside of steps."""
        if self._transfer is not None and self._transfer.run() and self._events is not None:
            self._events.flush()
        return ()

    def cost(self, sequence: SequenceState) -> Cost | None:
        """The gap between known and computed tokens, which may be computed in parts, and the drafts to verify.

        A sequence that starts will find the head of its prompt in the cache, or part of it if blocks go meanwhile. One that
        has come to an image is elsewhere until the image is encoded; one that waits may start: what is before it is computed.
        So is one whose token in flight is its last, or decides what may follow.
        """
        if sequence.num_in_flight and self._awaits_flight(sequence):
            return None
        num_found = 0 if sequence.num_blocks else self._cache.prefix.num_found(sequence)
        units = sequence.num_uncomputed - num_found + len(sequence.drafts)
        if units == 1 and not sequence.images:
            return _ONE_TOKEN
        if sequence.num_scored:
            units = min(units, MAX_SCORED_TOKENS)
        visible = self._num_visible(sequence, sequence.num_begun + num_found)
        if visible == 0 and sequence.num_blocks:
            return None
        return Cost(units=units if visible is None else min(units, max(visible, 1)), min_units=1)

    @staticmethod
    def _awaits_flight(sequence: SequenceState) -> bool:
        if sequence.num_scored:
            return True
        return sequence.num_expected > 0 and (sequence.looks_back or sequence.num_before >= sequence.max_output_tokens)

    def reserve(self, sequence: SequenceState, units: int) -> int:
        """Takes cache blocks."""
        if units == 1 and sequence.num_begun < sequence.num_blocks * self._cache.block_size:
            return 1
        return self._cache.reserve(sequence, units)

    def preempt(self, sequence: SequenceState) -> None:
        """Gives the sequence's cache away; what nobody else takes meanwhile is found again. Its images stay encoded."""
        tier = self._cache.tier
        reason = "what others overwrite is computed again: there is no kv_offload_bytes" if tier is None else tier.cost
        _LOG.debug("a sequence of %d computed tokens is preempted; %s", sequence.num_computed, reason)
        self._cache.free(sequence)
        self._speculator.release(sequence)

    def release(self, sequence: SequenceState) -> None:
        """Gives the sequence's cache and images back."""
        self._cache.free(sequence)
        self._speculator.release(sequence)
        if self._vision is not None:
            self._vision.release(sequence.images)

    @property
    def begins_steps(self) -> bool:
        """On devices that compute beside the host."""
        return self._begins_steps

    def step(self, batch: Sequence[Granted[SequenceState]]) -> Sequence[Outcome[TextDelta | Generation]]:
        """Computes the granted tokens of all sequences in one forward pass, and the next tokens of those that caught up.

        Nothing is computed for a sequence that started in front of an image that is not encoded yet.
        """
        return self.begin(batch).finish()

    def begin(self, batch: Sequence[Granted[SequenceState]]) -> PendingStep[TextDelta | Generation]:
        """Starts what `step` does. Tokens that the step in flight chooses are taken from it on the device."""
        units = [self._num_computable(granted) for granted in batch]
        sequences = [granted.sequence for granted, n in zip(batch, units, strict=True) if n]
        step = self._launch(sequences, [n for n in units if n]) if sequences else None
        return PendingTokens(batch, units, step, self._settle, self._cache)

    def _num_visible(self, sequence: SequenceState, begin: int) -> int | None:
        if self._vision is None or not sequence.images:
            return None
        return self._vision.num_visible(sequence.images, begin)

    def _num_computable(self, granted: Granted[SequenceState]) -> int:
        sequence = granted.sequence
        if granted.units == 1 and not sequence.images:
            return 1
        if not sequence.images:
            return min(granted.units, sequence.num_uncomputed + len(sequence.drafts))
        if any(image.failure is not None for image in sequence.images):
            return 0
        units = min(granted.units, sequence.num_uncomputed + len(sequence.drafts))
        visible = self._num_visible(sequence, sequence.num_begun)
        return units if visible is None else min(units, visible)

    def _launch(self, sequences: Sequence[SequenceState], units: list[int]) -> LaunchedStep:
        """Everything of a step that need not wait for the device. Leaves the sequences as they were if it raises."""
        for sequence in sequences:
            sequence.suspect = True  # until the logits after its last token prove to be finite
        spans = share_in_step(sequences, units, self._cache)
        began_s = time.perf_counter()
        try:
            step = self._compute(sequences, units, spans, began_s)
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
        self, sequences: Sequence[SequenceState], units: Sequence[int], spans: Sequence[SharedSpan], began_s: float
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
            may_be_followed=self._may_be_followed(sequences, layout),
        )

    def _unknown(self, sequences: Sequence[SequenceState]) -> Tensor | None:
        """The tokens in flight of rows whose penalties ask for them."""
        if self._chosen is None or not any(s.num_expected and s.token_counts is not None for s in sequences):
            return None
        carried = index_tensor([s.carried if s.num_expected else -1 for s in sequences], self._chosen.device)
        return with_carried(torch.full_like(carried, -1), carried, self._chosen)

    def _may_be_followed(self, sequences: Sequence[SequenceState], layout: BatchLayout) -> bool:
        """Whether the next step may begin before this one is done.

        Not if this one is started kernel by kernel: that takes the host as long as the device, and only while it waits do
        other threads come to prepare what arrives. Prompts in many small steps, one on top of the other, came to their first
        tokens after 1.7-2.1 s instead of 0.4-0.5 (256 at once, H100).
        """
        if (
            not self._begins_steps
            or self._speculator.awaits(len(sequences))
            or not self._decoder.starts_at_once(layout)
        ):
            return False
        num_looking_back = 0
        for sequence in sequences:
            sequence.looks_back = sequence.grammar is not None or bool(sequence.drafts)
            num_looking_back += sequence.looks_back
        # A few may take part in every other step; with many, two half steps by turns would cost twice one whole.
        return num_looking_back * _MAX_SHARE_LOOKING_BACK <= len(sequences)

    def _settle(self, step: LaunchedStep) -> list[Outcome[TextDelta | Generation]]:
        """Takes in what a step has computed."""
        sequences, units = step.sequences, step.units
        try:
            found = NO_ROWS if step.pending is None else step.pending.wait()
            filled = step.filled.wait()
            scores = self._scores(step)
        except BaseException:
            step.abandon(self._cache)
            raise
        # A step in flight waited for the one before: the device was busy with it only since then.
        began_s = max(step.began_s, self._waited_s)
        self._waited_s = time.perf_counter()
        tier = self._cache.tier
        # Only then was the device waited for, and for this step alone.
        if tier is not None and step.pending is not None and not step.may_be_followed:
            tier.observe_step(units, self._waited_s - began_s)
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
            outcomes.append(self._advance(sequence, units[i], own, its_logprobs))
            if filled and filled[i][1] and sequence.num_blocks:
                self._cache.publish_checked(sequence, *filled[i])
            # Behind that, since only what is published is offered.
            if sequence.finish_reason is not None and sequence.wants_kv_handle and self._transfer is not None:
                sequence.kv_handle = self._transfer.offer(sequence, sequence.num_prompt_tokens)
        for row in found.changed:
            sequences[step.sampled[row]].drop_in_flight()
        if not step.may_be_followed:
            self._speculator.propose([s for s, there in zip(sequences, is_there, strict=True) if there])
        if self._events is not None:
            self._events.flush()
        return outcomes

    def _scores(self, step: LaunchedStep) -> Mapping[int, Sequence[TokenLogprob]]:
        if step.scored_logits is None:
            return {}
        return score_prompts(step.scored_logits, step.sequences, step.scored, self._describer)

    def _advance(
        self,
        sequence: SequenceState,
        num_units: int,
        sampled: Sequence[int],
        logprobs: Sequence[RowLogprobs | None] | None,
    ) -> Outcome[TextDelta | Generation]:
        begin = sequence.num_computed
        end = begin + num_units
        if begin < sequence.num_prompt_tokens:
            self._num_prompt_tokens += min(end, sequence.num_prompt_tokens) - begin
        if not sampled:
            sequence.num_computed = end
            return _NOTHING
        if sequence.grammar is None and not sequence.drafts and sampled[0] >= 0:
            found = None if logprobs is None else logprobs[0]
            sequence.append(sampled[0], None if found is None else self._describer.describe(sampled[0], found))
            sequence.num_computed = end
            self._num_generated_tokens += 1
            return self._outcome(sequence)
        return self._advance_guessed(sequence, end, sampled, logprobs)

    def _advance_guessed(
        self,
        sequence: SequenceState,
        end: int,
        sampled: Sequence[int],
        logprobs: Sequence[RowLogprobs | None] | None,
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
        self._num_generated_tokens += sequence.num_output_tokens - num_output
        self._speculator.observe(sequence, len(drafts), max(num_accepted, 0))
        return self._outcome(sequence)

    def _outcome(self, sequence: SequenceState) -> Outcome[TextDelta | Generation]:
        """What a step with a token brings."""
        sequence.suspect = sequence.num_in_flight > 0
        return Outcome(output=sequence.take_delta(), done=sequence.finish_reason is not None)

    def finish(
        self, request: Request[ChatInput | CompletionInput], sequences: Sequence[SequenceState]
    ) -> Finish[TextDelta | Generation]:
        """Collects the choices and counts their tokens."""
        choices = tuple(
            Choice(text=s.text, finish_reason=s.finish_reason or "length", logprobs=s.logprobs)
            for s in sorted(sequences, key=lambda s: s.choice)
        )
        return Finish(
            result=Generation(choices=choices, kv_handle=sequences[0].kv_handle),
            usage=self._preparer.usage(sequences),
            finish_reason=choices[0].finish_reason,
        )

    def warm_up(self) -> None:
        """Runs prompts and decodes of several sizes, so that all kernels are there before the first request."""
        self._decoder.warm_up(self._info.max_model_len or 1)

    def close(self) -> None:
        """Ends the thread of the masks and all transfers, and tells routers that the cache is gone."""
        self._masks.close()
        if self._vision is not None:
            self._vision.close()
        if self._transfer is not None:
            self._transfer.close()
        if self._events is not None:
            self._events.close()

    def tell(self, decisions: DecisionLog) -> None:
        """Where the number of guesses has got to, and whether cached blocks go to the host."""
        self._speculator.decisions = decisions
        if self._cache.tier is not None:
            self._cache.tier.decisions = decisions

    def stats(self) -> Mapping[str, float]:
        """See `metrics`."""
        return {
            "prompt_tokens_total": self._num_prompt_tokens,
            "generation_tokens_total": self._num_generated_tokens,
            **self._cache.stats(),
            "lora_adapters_loaded": 0 if self._adapters is None else self._adapters.num_loaded,
            **self._speculator.stats(),
            **(NO_IMAGES if self._vision is None else self._vision.stats()),
            **(NO_TRANSFERS if self._transfer is None else self._transfer.stats()),
        }
