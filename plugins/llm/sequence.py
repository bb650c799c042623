"""The state of one sequence in the running batch."""

from __future__ import annotations

from collections.abc import Sequence

from sixfold.plugins.llm.cached_tokens import CachedTokens
from sixfold.plugins.llm.detokenizer import Detokenizer
from sixfold.plugins.llm.draft_pace import DraftPace
from sixfold.plugins.llm.generation import FinishReason, TextDelta, TokenLogprob
from sixfold.plugins.llm.grammar import Grammar
from sixfold.plugins.llm.kv_handle import KvHandle
from sixfold.plugins.llm.lora_adapter import Adapter
from sixfold.plugins.llm.penalties import TokenCounts
from sixfold.plugins.llm.prompt_images import PromptImage
from sixfold.plugins.llm.rope_positions import RopePositions
from sixfold.plugins.llm.sampling import Sampling
from sixfold.plugins.llm.stop import StopMatcher
from sixfold.plugins.llm.token_history import TokenHistory


class SequenceState(CachedTokens):
    """One choice of one prompt while it is generated. Made in the pool, then owned by the device thread.

    Args:
        choice: Index over all prompts and choices of the request.
        prompt_ids: The prompt's tokens, at least one.
        sampling: Resolved parameters.
        max_output_tokens: Where the answer ends at the latest.
        detokenizer: Of this sequence alone.
        stop: Of this sequence alone.
        salt: See `CachedTokens`.
        block_hashes: See `CachedTokens`.
        images: See `CachedTokens`.
        rope: See `CachedTokens`.
        adapter: See `CachedTokens`.
        counts_prompt: Whether this choice accounts for the prompt's tokens: the first of its prompt does.
        stream: Whether deltas are wanted.
        echo_text: The prompt's text, if it precedes the answer.
        grammar: Of this sequence alone; None for free text.
        opens_in_reasoning: Whether the prompt ended within the model's reasoning.
    """

    __slots__ = (
        "_logprobs",
        "_pending_text",
        "_pending_tokens",
        "_prompt_logprobs",
        "_sent_logprobs",
        "_texts",
        "choice",
        "counts_prompt",
        "detokenizer",
        "draft_pace",
        "finish_reason",
        "grammar",
        "history",
        "kv_handle",
        "looks_back",
        "max_output_tokens",
        "may_draft",
        "num_prompt_tokens",
        "opens_in_reasoning",
        "sampling",
        "stop",
        "stream",
        "token_counts",
        "wants_kv_handle",
    )

    def __init__(
        self,
        *,
        choice: int,
        prompt_ids: list[int],
        sampling: Sampling,
        max_output_tokens: int,
        detokenizer: Detokenizer,
        stop: StopMatcher,
        counts_prompt: bool,
        stream: bool,
        echo_text: str = "",
        salt: bytes | None = None,
        block_hashes: Sequence[bytes] = (),
        images: Sequence[PromptImage] = (),
        rope: RopePositions | None = None,
        adapter: Adapter | None = None,
        grammar: Grammar | None = None,
        opens_in_reasoning: bool = False,
    ) -> None:
        super().__init__(prompt_ids, salt=salt, block_hashes=block_hashes, images=images, rope=rope, adapter=adapter)
        self.choice = choice
        self.num_prompt_tokens = len(prompt_ids)
        self.sampling = sampling
        self.max_output_tokens = max_output_tokens
        self.detokenizer = detokenizer
        self.stop = stop
        self.counts_prompt = counts_prompt
        self.stream = stream
        self.token_counts = TokenCounts(prompt_ids) if sampling.has_penalties else None
        self.finish_reason: FinishReason | None = None
        self.grammar = grammar
        self.opens_in_reasoning = opens_in_reasoning
        # A grammar would have to follow every guess and come back; what it forces is added at once anyway.
        self.may_draft = not self.is_constrained
        self.draft_pace = DraftPace()
        self.looks_back = False  # whether its next step depends on the token that is in flight
        self.wants_kv_handle = False
        self.kv_handle: KvHandle | None = None  # given when the answer is done
        self.history: TokenHistory | None = None  # made by the proposer that needs it
        self._texts: list[str] = [echo_text] if echo_text else []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[TokenLogprob] = []
        self._pending_text = echo_text
        self._pending_tokens = 0
        self._sent_logprobs = 0

    @property
    def is_constrained(self) -> bool:
        """Whether a grammar says what may come next."""
        return self.grammar is not None and self.grammar.is_active

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_before(self) -> int:
        """Tokens of the answer that come before the next one that a step chooses: those in flight as well."""
        return len(self.token_ids) + self.num_expected - self.num_prompt_tokens

    @property
    def has_unknown(self) -> bool:
        """Whether the last of these is chosen by a step in flight."""
        return self.num_expected > 0

    @property
    def output_ids(self) -> list[int]:
        """The tokens generated so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_left(self) -> int:
        """How many tokens may follow the next one. More drafts are of no use: a step gives one token more than it accepts."""
        return self.max_output_tokens - self.num_output_tokens - 1

    @property
    def text(self) -> str:
        """All text so far, the echoed prompt included; held-back text is not in it."""
        return "".join(self._texts)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Of all tokens so far that are part of the text."""
        return tuple(self._logprobs)

    def add_scores(self, begin: int, scores: Sequence[TokenLogprob]) -> None:
        """Takes what is known of the prompt's tokens after those before the place ``begin`` were computed."""
        self._prompt_logprobs[begin + bool(begin) :] = scores

    def append(self, token_id: int, logprob: TokenLogprob | None) -> bool:
        """Adds a generated token; sets `finish_reason` at the end.

        Returns:
            False if it is not added and another must be chosen: a grammar began with it that does not allow it, or the form
            could not be closed after it, and log probabilities of what closes it are wanted.

        Tokens that the grammar leaves no choice about are added at once: the next step computes them like a prompt's, which
        costs little more than one. Where log probabilities are wanted they are generated one by one, for theirs.
        """
        if self.num_scored:
            self._logprobs, self.num_scored = self._prompt_logprobs, 0
        if self.grammar is None:
            self._add(token_id, logprob)
            return True
        is_taken = self.grammar.accept(token_id, self.num_left)
        self.may_draft = self.may_draft and not self.is_constrained
        wants_logprobs = self.sampling.num_top_logprobs is not None
        if is_taken:
            self._add(token_id, logprob)
        elif self.grammar.is_complete:
            self._finish_at_limit("length")
        elif wants_logprobs or not self.grammar.is_closing:
            self.may_draft = False
            return False
        if not wants_logprobs:
            self._add_forced(self.grammar)
        return True

    def _add_forced(self, grammar: Grammar) -> None:
        while self.finish_reason is None and (forced := grammar.forced()):
            for forced_id in forced:
                if not grammar.accept(forced_id, self.num_left):
                    if grammar.is_complete:
                        self._finish_at_limit("length")
                    break  # what closes the form is shorter
                self._add(forced_id, None)
                if self.finish_reason is not None:
                    break

    def _add(self, token_id: int, logprob: TokenLogprob | None) -> None:
        self.token_ids.append(token_id)
        self._pending_tokens += 1
        if self.token_counts is not None:
            self.token_counts.add(token_id)
        sampling = self.sampling
        num_output = len(self.token_ids) - self.num_prompt_tokens
        if token_id in sampling.end_ids and num_output > sampling.min_tokens:
            self._add_text(self.stop.push(self.detokenizer.flush())[0] + self.stop.flush())
            self.finish_reason = "stop"
            return
        if logprob is not None:
            self._logprobs.append(logprob)
        text, stopped = self.stop.push(self.detokenizer.push(token_id), may_stop=num_output >= sampling.min_tokens)
        if text:
            self._texts.append(text)
            self._pending_text += text
        if stopped:
            self.finish_reason = "stop"
        elif self.grammar is not None and self.grammar.is_complete:
            self._finish_at_limit("length" if self.grammar.is_closing else "stop")
        elif num_output >= self.max_output_tokens:
            self._finish_at_limit("length")

    def take_delta(self) -> TextDelta | None:
        """What can be sent of all that was added since the last call; None if nothing or if nobody wants it."""
        if not self.stream or (not self._pending_text and self.finish_reason is None):
            return None
        delta = TextDelta(
            choice=self.choice,
            text=self._pending_text,
            num_tokens=self._pending_tokens,
            logprobs=tuple(self._logprobs[self._sent_logprobs :]) if self._logprobs else (),
            finish_reason=self.finish_reason,
            opens_in_reasoning=self.opens_in_reasoning,
        )
        self._pending_text = ""
        self._pending_tokens = 0
        self._sent_logprobs = len(self._logprobs)
        return delta

    def _finish_at_limit(self, reason: FinishReason) -> None:
        text, stopped = self.stop.push(self.detokenizer.flush())
        self._add_text(text if stopped else text + self.stop.flush())
        self.finish_reason = "stop" if stopped else reason

    def _add_text(self, text: str) -> None:
        if text:
            self._texts.append(text)
            self._pending_text += text
