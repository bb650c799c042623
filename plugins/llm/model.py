"""The native runtime as the core sees it: a `StepModel` whose unit is one token."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import BaseModel

from sixfold.core.batching.model import Finish, Granted, ModelInfo, Outcome, StepModel
from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Cost, Request
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
from sixfold.plugins.llm.lora_table import AdapterTable
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.prepare import Preparer, estimate_tokens, split_input
from sixfold.plugins.llm.prompt_scores import MAX_SCORED_TOKENS, score_prompts
from sixfold.plugins.llm.sampler import SampledToken, sample
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.speculation import Speculator
from sixfold.plugins.llm.step_failures import step_failed, unseen
from sixfold.plugins.llm.step_sharing import share_in_step
from sixfold.plugins.llm.token_describer import TokenDescriber
from sixfold.plugins.llm.vision import NO_IMAGES, VisionTower

_LOG = logging.getLogger(__name__)


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
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0

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
        """
        num_found = 0 if sequence.num_blocks else self._cache.prefix.num_found(sequence)
        units = sequence.num_uncomputed - num_found + len(sequence.drafts)
        if sequence.num_scored:
            units = min(units, MAX_SCORED_TOKENS)
        visible = self._num_visible(sequence, sequence.num_computed + num_found)
        if visible == 0 and sequence.num_blocks:
            return None
        return Cost(units=units if visible is None else min(units, max(visible, 1)), min_units=1)

    def reserve(self, sequence: SequenceState, units: int) -> int:
        """Takes cache blocks."""
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

    def step(self, batch: Sequence[Granted[SequenceState]]) -> Sequence[Outcome[TextDelta | Generation]]:
        """Computes the granted tokens of all sequences in one forward pass, and the next tokens of those that caught up.

        Nothing is computed for a sequence that started in front of an image that is not encoded yet.
        """
        units = [self._num_computable(granted) for granted in batch]
        computed = [granted.sequence for granted, n in zip(batch, units, strict=True) if n]
        outcomes = iter(self._step(computed, [n for n in units if n])) if computed else iter(())
        return [next(outcomes) if n else unseen(granted.sequence) for granted, n in zip(batch, units, strict=True)]

    def _num_visible(self, sequence: SequenceState, begin: int) -> int | None:
        if self._vision is None or not sequence.images:
            return None
        return self._vision.num_visible(sequence.images, begin)

    def _num_computable(self, granted: Granted[SequenceState]) -> int:
        sequence = granted.sequence
        if any(image.failure is not None for image in sequence.images):
            return 0
        units = min(granted.units, sequence.num_uncomputed + len(sequence.drafts))
        visible = self._num_visible(sequence, sequence.num_computed)
        return units if visible is None else min(units, visible)

    def _step(self, sequences: Sequence[SequenceState], units: list[int]) -> Sequence[Outcome[TextDelta | Generation]]:
        for sequence in sequences:
            sequence.suspect = True  # until the logits after its last token prove to be finite
        spans = share_in_step(sequences, units, block_size=self._cache.block_size)
        began_s = time.perf_counter()
        try:
            sampled, scores = self._compute(sequences, units)
        except BaseException:
            for span in reversed(spans):
                span.undo()
            raise
        if self._cache.tier is not None and sampled:  # only then was the device waited for
            self._cache.tier.observe_step(sum(units), time.perf_counter() - began_s)
        # Nothing above has changed a sequence: had it failed, the core could repeat it. From here on nothing fails.
        for span in spans:
            span.keep(self._cache)
        for i, found in scores.items():
            sequences[i].add_scores(sequences[i].num_computed, found)
        outcomes = [
            self._advance(s, n, sampled.get(i, [])) for i, (s, n) in enumerate(zip(sequences, units, strict=True))
        ]
        self._speculator.propose(sequences)
        if self._events is not None:
            self._events.flush()
        return outcomes

    def _compute(
        self, sequences: Sequence[SequenceState], units: Sequence[int]
    ) -> tuple[dict[int, list[SampledToken]], Mapping[int, Sequence[TokenLogprob]]]:
        """The tokens sampled for each place in the batch, the next one and one after each draft; what prompts are judged."""
        with torch.inference_mode():
            layout = self._decoder.lay_out(sequences, units)
            pending = self._masks.begin([sequences[i].grammar for i in layout.sampled])
            logits = self._decoder.forward(layout)
            rows = sampled_rows(sequences, layout.sampled)
            tokens = sample(logits[: len(rows)], rows, pending.wait()) if logits is not None and rows else []
            scores: Mapping[int, Sequence[TokenLogprob]] = {}
            if layout.scored and logits is not None:
                scores = score_prompts(logits[len(rows) :], sequences, layout.scored, self._describer)
        result: dict[int, list[SampledToken]] = {}
        for i, token in zip(layout.sampled, tokens, strict=True):
            result.setdefault(i, []).append(token)
        return result, scores

    def _advance(
        self, sequence: SequenceState, num_units: int, sampled: Sequence[SampledToken]
    ) -> Outcome[TextDelta | Generation]:
        begin = sequence.num_computed
        end = begin + num_units
        self._num_prompt_tokens += max(0, min(end, sequence.num_prompt_tokens) - begin)
        if not sampled:
            sequence.num_computed = end
            self._cache.publish(sequence)
            return Outcome()
        drafts, sequence.drafts = sequence.drafts[: len(sampled) - 1], ()
        if drafts and any(token.token_id is None for token in sampled):
            # A masked value that is not finite spoils the rows before it as well: without drafts it will show whether
            # the sequence itself is to blame.
            self._cache.erase(sequence, begin, end)
            sequence.suspect = sequence.may_draft = False
            return Outcome()
        num_output = sequence.num_output_tokens
        num_accepted = 0
        for token, draft in zip(sampled, (*drafts, None), strict=True):
            failure = None if sequence.grammar is None else sequence.grammar.failure
            if token.token_id is None or failure is not None:
                return Outcome(done=True, error=step_failed(sequence, failure))
            logprob = None if token.logprobs is None else self._describer.describe(token.token_id, token.logprobs)
            if not sequence.append(token.token_id, logprob):
                num_accepted -= 1  # the token before is computed again, now with the grammar's mask
                break
            # Drafts behind the begin of a grammar were sampled without its mask.
            if sequence.finish_reason is not None or token.token_id != draft or sequence.is_constrained:
                break
            num_accepted += 1
        # What lies behind belongs to wrong drafts and will be written over.
        sequence.num_computed = end - len(drafts) + num_accepted
        self._num_generated_tokens += sequence.num_output_tokens - num_output
        sequence.suspect = False
        self._speculator.observe(sequence, len(drafts), max(num_accepted, 0))
        self._cache.publish(sequence)
        if sequence.finish_reason is not None and sequence.wants_kv_handle and self._transfer is not None:
            sequence.kv_handle = self._transfer.offer(sequence, sequence.num_prompt_tokens)
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
