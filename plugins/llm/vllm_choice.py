"""Collects what vLLM makes of one choice into deltas and, at the end, an answer. Structural: imports nothing of vLLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from sixfold.core.errors import StepFailed
from sixfold.plugins.llm.generation import Choice, FinishReason, TextDelta, TokenLogprob, TopToken


class EngineLogprob(Protocol):
    """One entry of ``vllm.logprobs.Logprob``."""

    logprob: float
    rank: int | None


class EngineChoice(Protocol):
    """What the family reads of ``vllm.outputs.CompletionOutput``: new text and tokens only."""

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, EngineLogprob]] | None
    finish_reason: str | None
    stop_reason: int | str | None


class ChoiceCollector:
    """One choice of one prompt while the engine generates it. Owner: the engine's loop.

    vLLM detokenizes (in Rust, whole characters only) and finds stop strings itself, since it does so in the one pass that
    it makes over a step's outputs; what is left is to hold tokens without text back until there is some.

    Args:
        choice: Index over all prompts and choices of the request.
        stream: Whether deltas are wanted.
        num_top_logprobs: Alternatives to report per token; None reports nothing.
        token_bytes: The bytes that a token stands for.
        echo_text: The prompt's text, if it precedes the answer.
        opens_in_reasoning: Whether the prompt ended within the model's reasoning.
    """

    __slots__ = (
        "_logprobs",
        "_num_sent_logprobs",
        "_num_top",
        "_pending_text",
        "_pending_tokens",
        "_stream",
        "_texts",
        "_token_bytes",
        "choice",
        "finish_reason",
        "opens_in_reasoning",
        "token_ids",
    )

    def __init__(
        self,
        *,
        choice: int,
        stream: bool,
        num_top_logprobs: int | None,
        token_bytes: Callable[[int], bytes],
        echo_text: str = "",
        opens_in_reasoning: bool = False,
    ) -> None:
        self.choice = choice
        self.token_ids: list[int] = []
        self.opens_in_reasoning = opens_in_reasoning
        self.finish_reason: FinishReason | None = None
        self._stream = stream
        self._num_top = num_top_logprobs
        self._token_bytes = token_bytes
        self._texts = [echo_text] if echo_text else []
        self._pending_text = echo_text
        self._pending_tokens = 0
        self._logprobs: list[TokenLogprob] = []
        self._num_sent_logprobs = 0

    def add(self, made: EngineChoice) -> TextDelta | None:
        """Takes what is new; returns what can be sent now.

        Raises:
            StepFailed: The engine gave the choice up.
        """
        num_new = len(made.token_ids)
        self.token_ids += made.token_ids
        if made.finish_reason is not None:
            self.finish_reason = _finish_reason(made.finish_reason)
        text = made.text
        if text:
            self._texts.append(text)
        if self._num_top is not None and made.logprobs:
            self._add_logprobs(made)
        if not self._stream:
            return None
        if self._pending_text:
            text = self._pending_text + text
        num_new += self._pending_tokens
        if not text and self.finish_reason is None:
            self._pending_tokens = num_new
            return None
        self._pending_text = ""
        self._pending_tokens = 0
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._num_sent_logprobs < len(self._logprobs):
            logprobs = tuple(self._logprobs[self._num_sent_logprobs :])
            self._num_sent_logprobs = len(self._logprobs)
        return TextDelta(
            choice=self.choice,
            text=text,
            num_tokens=num_new,
            logprobs=logprobs,
            finish_reason=self.finish_reason,
            opens_in_reasoning=self.opens_in_reasoning,
        )

    def result(self) -> Choice:
        """The whole answer, once it is finished."""
        assert self.finish_reason is not None
        return Choice(
            text="".join(self._texts),
            finish_reason=self.finish_reason,
            logprobs=tuple(self._logprobs),
            opens_in_reasoning=self.opens_in_reasoning,
        )

    def _add_logprobs(self, made: EngineChoice) -> None:
        rows = list(zip(made.token_ids, made.logprobs or (), strict=False))
        if made.finish_reason == "stop" and not isinstance(made.stop_reason, str):
            rows = rows[:-1]  # an end token is no part of the text
        for token_id, row in rows:
            ranked = sorted(row.items(), key=lambda item: -item[1].logprob)
            # The chosen token comes along when it is not among the likeliest.
            top = tuple(self._top_token(i, value.logprob) for i, value in ranked[: self._num_top])
            self._logprobs.append(TokenLogprob(chosen=self._top_token(token_id, row[token_id].logprob), top=top))

    def _top_token(self, token_id: int, logprob: float) -> TopToken:
        raw = self._token_bytes(token_id)
        return TopToken(text=raw.decode("utf-8", errors="replace"), raw=raw, logprob=max(logprob, -9999.0))


def _finish_reason(reason: str) -> FinishReason:
    if reason == "length":
        return "length"
    if reason in ("stop", "repetition"):
        return "stop"
    raise StepFailed(f"The engine ended the answer early ({reason}). Retry.")


def remembered(token_bytes: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """The same with a memory: alternatives repeat from token to token, and a look-up in the tokenizer takes microseconds."""
    known: dict[int, bytes] = {}

    def look_up(token_id: int) -> bytes:
        raw = known.get(token_id)
        if raw is None:
            raw = known[token_id] = token_bytes(token_id)
        return raw

    return look_up
