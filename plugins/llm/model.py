"""The native runtime as the core sees it: a `StepModel` whose unit is one token."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel

from sixfold.core.batching.model import Finish, Granted, ModelInfo, Outcome, PendingStep, StepModel, StepRange
from sixfold.core.decisions import DecisionLog
from sixfold.core.errors import InvalidRequest
from sixfold.core.messages import Cost, Request
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.generation import ChatInput, Choice, CompletionInput, Generation, TextDelta
from sixfold.plugins.llm.grammar_masks import GrammarMasks
from sixfold.plugins.llm.kv_announcer import KvAnnouncer
from sixfold.plugins.llm.kv_transfer import NO_TRANSFERS, KvTransfer
from sixfold.plugins.llm.lora_table import AdapterTable
from sixfold.plugins.llm.options import TransformersOptions
from sixfold.plugins.llm.pending_step import LaunchedStep, PendingTokens
from sixfold.plugins.llm.prepare import Preparer, estimate_tokens, split_input
from sixfold.plugins.llm.prompt_scores import MAX_SCORED_TOKENS
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.speculation import Speculator
from sixfold.plugins.llm.step_launcher import StepLauncher
from sixfold.plugins.llm.step_settler import StepSettler
from sixfold.plugins.llm.token_describer import TokenDescriber
from sixfold.plugins.llm.vision import NO_IMAGES, VisionTower

_LOG = logging.getLogger(__name__)

# A 1B model computes so many in 39 ms on an H100; more make decoding wait and the activations large.
_GPU_STEP_TOKENS = 8192

_ONE_TOKEN = Cost(units=1, min_units=1)


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
        self._info = info
        self._masks = masks
        self._speculator = speculator
        self._events = events
        self._transfer = transfer
        self._vision = vision
        self._tokens_per_image = tokens_per_image
        self._adapters = adapters
        self._begins_steps = begins_steps
        self._launcher = StepLauncher(decoder, masks, begins_steps=begins_steps)
        self._settler = StepSettler(decoder.cache, describer, events=events, transfer=transfer)

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
        awaits = self._speculator.awaits(len(sequences))
        step = self._launcher.launch(sequences, [n for n in units if n], awaits=awaits) if sequences else None
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

    def _settle(self, step: LaunchedStep) -> list[Outcome[TextDelta | Generation]]:
        return self._settler.settle(step, self._speculator)

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
            "prompt_tokens_total": self._settler.intake.num_prompt_tokens,
            "generation_tokens_total": self._settler.intake.num_generated_tokens,
            **self._cache.stats(),
            "lora_adapters_loaded": 0 if self._adapters is None else self._adapters.num_loaded,
            **self._speculator.stats(),
            **(NO_IMAGES if self._vision is None else self._vision.stats()),
            **(NO_TRANSFERS if self._transfer is None else self._transfer.stats()),
        }
