"""The native runtime as the core sees it: a `StepModel` whose unit is one token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from sixfold.core.batching.model import Finish, Granted, ModelInfo, Outcome, StepModel
from sixfold.core.errors import InvalidRequest, StepFailed
from sixfold.core.messages import Cost, Request, Usage
from sixfold.plugins.llm.decoder import Decoder
from sixfold.plugins.llm.drafted_row import sampled_rows
from sixfold.plugins.llm.generation import (
    ChatInput,
    Choice,
    CompletionInput,
    Generation,
    TextDelta,
    TokenLogprob,
    TopToken,
)
from sixfold.plugins.llm.grammar_masks import GrammarMasks
from sixfold.plugins.llm.kv_announcer import KvAnnouncer
from sixfold.plugins.llm.kv_transfer import NO_TRANSFERS, KvTransfer
from sixfold.plugins.llm.prepare import Preparer, estimate_tokens, split_input
from sixfold.plugins.llm.sampler import RowLogprobs, SampledToken, sample
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.speculation import Speculator
from sixfold.plugins.llm.step_sharing import share_in_step
from sixfold.plugins.llm.text_codec import TextCodec

_WARM_UP_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 24, 32, 64)
_WARM_UP_PROMPT_TOKENS = 256


class TransformersModel(StepModel[SequenceState, ChatInput | CompletionInput, TextDelta | Generation]):
    """Runs any decoder of transformers with in-flight batching.

    The one rule: a sequence has known tokens (prompt and answer) and computed ones, and asks for the gap. A prompt is a
    large gap and may be cut anywhere; generation is a gap of one; preemption makes all of it a gap again.

    Args:
        decoder: The model and its cache.
        preparer: Makes its sequences.
        codec: Its tokenizer, for the text of logprobs.
        info: Facts about it.
        masks: Of its vocabulary.
        speculator: Guesses tokens ahead.
        events: Announces cached prefixes; None if nobody is told.
        transfer: Exchanges computed prompts with other processes; None if there are none.
    """

    def __init__(
        self,
        *,
        decoder: Decoder,
        preparer: Preparer,
        codec: TextCodec,
        info: ModelInfo,
        masks: GrammarMasks,
        speculator: Speculator,
        events: KvAnnouncer | None = None,
        transfer: KvTransfer | None = None,
    ) -> None:
        self._decoder = decoder
        self._cache = decoder.cache
        self._preparer = preparer
        self._codec = codec
        self._info = info
        self._masks = masks
        self._speculator = speculator
        self._events = events
        self._transfer = transfer
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0

    @property
    def info(self) -> ModelInfo:
        """Facts about the loaded model."""
        return self._info

    def estimate_units(self, request: Request[ChatInput | CompletionInput]) -> int:
        """Guesses tokens from text lengths."""
        return estimate_tokens(request.input, self._info.max_model_len or 1)

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

    def attach(self, wake: Callable[[], None]) -> None:
        """Transfers between processes need the device's time without a request."""
        if self._transfer is not None:
            self._transfer.attach(wake)

    def collect(self) -> Sequence[tuple[SequenceState, Outcome[TextDelta | Generation]]]:
        """Does what transfers wait for; sequences do nothing outside of steps."""
        if self._transfer is not None and self._transfer.run() and self._events is not None:
            self._events.flush()
        return ()

    def cost(self, sequence: SequenceState) -> Cost:
        """The gap between known and computed tokens, which may be computed in parts, and the drafts to verify.

        A sequence that starts will find the head of its prompt in the cache, or part of it if blocks go meanwhile.
        """
        num_found = 0 if sequence.num_blocks else self._cache.prefix.num_found(sequence)
        return Cost(units=sequence.num_uncomputed - num_found + len(sequence.drafts), min_units=1)

    def reserve(self, sequence: SequenceState, units: int) -> int:
        """Takes cache blocks."""
        return self._cache.reserve(sequence, units)

    def preempt(self, sequence: SequenceState) -> None:
        """Gives the sequence's cache away; what nobody else takes meanwhile is found again."""
        self._cache.free(sequence)
        self._speculator.release(sequence)

    def release(self, sequence: SequenceState) -> None:
        """Gives the sequence's cache back."""
        self._cache.free(sequence)
        self._speculator.release(sequence)

    def step(self, batch: Sequence[Granted[SequenceState]]) -> Sequence[Outcome[TextDelta | Generation]]:
        """Computes the granted tokens of all sequences in one forward pass, and the next tokens of those that caught up."""
        sequences = [granted.sequence for granted in batch]
        units = [min(g.units, g.sequence.num_uncomputed + len(g.sequence.drafts)) for g in batch]
        for sequence in sequences:
            sequence.suspect = True  # until the logits after its last token prove to be finite
        spans = share_in_step(sequences, units, block_size=self._cache.block_size)
        try:
            sampled = self._compute(sequences, units)
        except BaseException:
            for span in reversed(spans):
                span.undo()
            raise
        # Nothing above has changed a sequence: had it failed, the core could repeat it. From here on nothing fails.
        for span in spans:
            span.keep(self._cache)
        outcomes = [
            self._advance(s, n, sampled.get(i, [])) for i, (s, n) in enumerate(zip(sequences, units, strict=True))
        ]
        self._speculator.propose(sequences)
        if self._events is not None:
            self._events.flush()
        return outcomes

    def _compute(self, sequences: Sequence[SequenceState], units: Sequence[int]) -> dict[int, list[SampledToken]]:
        """The tokens sampled for each place in the batch: the next one, and one after each draft."""
        with torch.inference_mode():
            layout = self._decoder.lay_out(sequences, units)
            pending = self._masks.begin([sequences[i].grammar for i in layout.sampled])
            logits = self._decoder.forward(layout)
            rows = sampled_rows(sequences, layout.sampled)
            tokens = [] if logits is None else sample(logits, rows, pending.wait())
        result: dict[int, list[SampledToken]] = {}
        for i, token in zip(layout.sampled, tokens, strict=True):
            result.setdefault(i, []).append(token)
        return result

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
                return Outcome(done=True, error=_step_failed(sequence, failure))
            logprob = None if token.logprobs is None else self._describe(token.token_id, token.logprobs)
            sequence.append(token.token_id, logprob)
            if sequence.finish_reason is not None or token.token_id != draft:
                break
            num_accepted += 1
        # What lies behind belongs to wrong drafts and will be written over.
        sequence.num_computed = end - len(drafts) + num_accepted
        self._num_generated_tokens += sequence.num_output_tokens - num_output
        sequence.suspect = False
        self._speculator.observe(sequence, len(drafts), num_accepted)
        self._cache.publish(sequence)
        if sequence.finish_reason is not None and sequence.wants_kv_handle and self._transfer is not None:
            sequence.kv_handle = self._transfer.offer(sequence, sequence.num_prompt_tokens)
        return Outcome(output=sequence.take_delta(), done=sequence.finish_reason is not None)

    def _describe(self, token_id: int, logprobs: RowLogprobs) -> TokenLogprob:
        return TokenLogprob(
            chosen=self._top_token(token_id, logprobs.chosen),
            top=tuple(self._top_token(i, value) for i, value in zip(logprobs.top_ids, logprobs.top, strict=True)),
        )

    def _top_token(self, token_id: int, logprob: float) -> TopToken:
        raw = self._codec.token_bytes(token_id)
        return TopToken(text=raw.decode("utf-8", errors="replace"), raw=raw, logprob=max(logprob, -9999.0))

    def finish(
        self, request: Request[ChatInput | CompletionInput], sequences: Sequence[SequenceState]
    ) -> Finish[TextDelta | Generation]:
        """Collects the choices and counts their tokens."""
        choices = tuple(
            Choice(text=s.text, finish_reason=s.finish_reason or "length", logprobs=s.logprobs)
            for s in sorted(sequences, key=lambda s: s.choice)
        )
        counts = {
            "prompt_tokens": sum(s.num_prompt_tokens for s in sequences if s.counts_prompt),
            "completion_tokens": sum(s.num_output_tokens for s in sequences),
            "cached_tokens": sum(s.num_cached or 0 for s in sequences if s.counts_prompt),
            "reasoning_tokens": sum(
                self._preparer.num_reasoning_tokens(s.output_ids, opens_in_reasoning=s.opens_in_reasoning)
                for s in sequences
            ),
        }
        return Finish(
            result=Generation(choices=choices, kv_handle=sequences[0].kv_handle),
            usage=Usage(counts=counts),
            finish_reason=choices[0].finish_reason,
        )

    def warm_up(self) -> None:
        """Runs prompts and decodes of several sizes, so that all kernels are there before the first request."""
        for num_rows in _WARM_UP_ROWS:
            self._decoder.run([[0]] * num_rows)
        max_context = self._info.max_model_len or 1
        self._decoder.run([[0] * min(_WARM_UP_PROMPT_TOKENS, max_context)])
        self._decoder.record(max_context=max_context)

    def close(self) -> None:
        """Ends the thread of the masks and all transfers, and tells routers that the cache is gone."""
        self._masks.close()
        if self._transfer is not None:
            self._transfer.close()
        if self._events is not None:
            self._events.close()

    def stats(self) -> Mapping[str, float]:
        """See `metrics`."""
        pool, prefix = self._cache.pool, self._cache.prefix
        return {
            "prompt_tokens_total": self._num_prompt_tokens,
            "generation_tokens_total": self._num_generated_tokens,
            "kv_cache_usage_perc": pool.num_used / pool.num_usable,
            "kv_blocks_used": pool.num_used,
            "kv_blocks_total": pool.num_usable,
            "prefix_cache_queries_total": prefix.num_queried_tokens,
            "prefix_cache_hits_total": prefix.num_hit_tokens,
            **({} if self._cache.tier is None else self._cache.tier.stats()),
            **self._speculator.stats(),
            **(NO_TRANSFERS if self._transfer is None else self._transfer.stats()),
        }


def _step_failed(sequence: SequenceState, grammar_failure: str | None) -> StepFailed:
    if grammar_failure is not None:
        return StepFailed(f"The answer's form could not be followed any further: {grammar_failure}")
    what = "no finite probabilities for this request"
    if sequence.grammar is not None:
        what += ", or its vocabulary can't spell what the answer's form wants next"
    return StepFailed(f"The model gave {what}. Shorten or change the input.")
