"""The native runtime as the core sees it: a `StepModel` whose unit is one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from sixfold.core.batching.model import Finish, Granted, ModelInfo, Outcome, StepModel
from sixfold.core.errors import StepFailed
from sixfold.core.messages import Cost, Request, Usage
from sixfold.plugins.llm.batch_layout import lay_out
from sixfold.plugins.llm.decoder import Decoder
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
from sixfold.plugins.llm.prepare import Preparer, estimate_tokens, split_input
from sixfold.plugins.llm.sampler import RowLogprobs, SampledToken, sample
from sixfold.plugins.llm.sequence import SequenceState
from sixfold.plugins.llm.text_codec import TextCodec

_WARM_UP_ROWS = (1, 2, 4, 8, 16, 24, 32, 64)
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
    """

    def __init__(
        self, *, decoder: Decoder, preparer: Preparer, codec: TextCodec, info: ModelInfo, masks: GrammarMasks
    ) -> None:
        self._decoder = decoder
        self._cache = decoder.cache
        self._preparer = preparer
        self._codec = codec
        self._info = info
        self._masks = masks
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
        """Tokenizes one prompt; one sequence per choice."""
        return self._preparer.prepare(request.input, piece)

    def cost(self, sequence: SequenceState) -> Cost:
        """The gap between known and computed tokens, which may be computed in parts."""
        return Cost(units=sequence.num_uncomputed, min_units=1)

    def reserve(self, sequence: SequenceState, units: int) -> int:
        """Takes cache blocks."""
        return self._cache.reserve(sequence, units)

    def preempt(self, sequence: SequenceState) -> None:
        """Gives the sequence's cache away; all its tokens will be computed again."""
        self._cache.free(sequence)

    def release(self, sequence: SequenceState) -> None:
        """Gives the sequence's cache back."""
        self._cache.free(sequence)

    def step(self, batch: Sequence[Granted[SequenceState]]) -> Sequence[Outcome[TextDelta | Generation]]:
        """Computes the granted tokens of all sequences in one forward pass, and the next token of those that caught up."""
        sequences = [granted.sequence for granted in batch]
        units = [min(granted.units, granted.sequence.num_uncomputed) for granted in batch]
        for sequence in sequences:
            sequence.suspect = True  # until the logits after its last token prove to be finite
        with torch.inference_mode():
            layout = lay_out(sequences, units, block_size=self._cache.block_size, device=self._decoder.device)
            rows = [sequences[i] for i in layout.sampled]
            pending = self._masks.begin([row.grammar for row in rows])
            logits = self._decoder.forward(layout)
            sampled = [] if logits is None else sample(logits, rows, pending.wait())
        # Nothing above has changed a sequence: had it failed, the core could repeat it. From here on nothing fails.
        next_tokens = dict(zip(layout.sampled, sampled, strict=True))
        return [self._advance(s, n, next_tokens.get(i)) for i, (s, n) in enumerate(zip(sequences, units, strict=True))]

    def _advance(
        self, sequence: SequenceState, num_computed: int, sampled: SampledToken | None
    ) -> Outcome[TextDelta | Generation]:
        before = sequence.num_computed
        sequence.num_computed += num_computed
        num_prompt_left = max(0, sequence.num_prompt_tokens - before)
        self._num_prompt_tokens += min(num_computed, num_prompt_left)
        if sampled is None:
            return Outcome()
        failure = None if sequence.grammar is None else sequence.grammar.failure
        if sampled.token_id is None or failure is not None:
            return Outcome(done=True, error=_step_failed(sequence, failure))
        sequence.suspect = False
        num_output = sequence.num_output_tokens
        logprob = None if sampled.logprobs is None else self._describe(sampled.token_id, sampled.logprobs)
        delta = sequence.append(sampled.token_id, logprob)
        self._num_generated_tokens += sequence.num_output_tokens - num_output
        return Outcome(output=delta, done=sequence.finish_reason is not None)

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
            Choice(
                text=s.text,
                finish_reason=s.finish_reason or "length",
                logprobs=s.logprobs,
                opens_in_reasoning=s.opens_in_reasoning,
            )
            for s in sorted(sequences, key=lambda s: s.choice)
        )
        counts = {
            "prompt_tokens": sum(s.num_prompt_tokens for s in sequences if s.counts_prompt),
            "completion_tokens": sum(s.num_output_tokens for s in sequences),
            "cached_tokens": 0,
            "reasoning_tokens": sum(map(self._preparer.num_reasoning_tokens, sequences)),
        }
        return Finish(
            result=Generation(choices=choices), usage=Usage(counts=counts), finish_reason=choices[0].finish_reason
        )

    def warm_up(self) -> None:
        """Runs prompts and decodes of several sizes, so that oneDNN has its kernels before the first request."""
        for num_rows in _WARM_UP_ROWS:
            self._decoder.run([[0]] * num_rows)
        self._decoder.run([[0] * min(_WARM_UP_PROMPT_TOKENS, self._info.max_model_len or 1)])

    def close(self) -> None:
        """Ends the thread of the masks."""
        self._masks.close()

    def stats(self) -> Mapping[str, float]:
        """See `metrics`."""
        pool = self._cache.pool
        return {
            "prompt_tokens_total": self._num_prompt_tokens,
            "generation_tokens_total": self._num_generated_tokens,
            "kv_cache_usage_perc": pool.num_used / pool.num_usable,
            "kv_blocks_used": pool.num_used,
            "kv_blocks_total": pool.num_usable,
        }


def _step_failed(sequence: SequenceState, grammar_failure: str | None) -> StepFailed:
    if grammar_failure is not None:
        return StepFailed(f"The answer's form could not be followed any further: {grammar_failure}")
    what = "no finite probabilities for this request"
    if sequence.grammar is not None:
        what += ", or its vocabulary can't spell what the answer's form wants next"
    return StepFailed(f"The model gave {what}. Shorten or change the input.")
