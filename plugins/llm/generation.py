"""What a generation request and its answer look like between the HTTP face and the runtime; both sides import only this."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length"]
TemplateValue = str | int | float | bool | None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the tokens of every choice of a request are chosen; None stands for the model's own default.

    Attributes:
        max_tokens: Most tokens to generate; None fills the context.
        min_tokens: Neither an end token nor a stop string ends the answer before this many tokens.
        temperature: 0 takes the likeliest token.
        top_p: Keeps the likeliest tokens whose probabilities reach this sum.
        top_k: Keeps this many tokens; 0 keeps all.
        min_p: Drops tokens less likely than this share of the likeliest one.
        presence_penalty: Subtracted once from the logit of each token that was generated before.
        frequency_penalty: Subtracted as many times as the token was generated before.
        repetition_penalty: Divides (or multiplies, if negative) the logits of tokens seen in prompt or answer.
        logit_bias: (token id, addend) pairs.
        seed: Makes sampling repeatable; None draws one.
        stop: Strings that end the answer and are not part of it.
        stop_token_ids: Tokens that end the answer, as the model's own end tokens do.
        ignore_eos: The model's end tokens do not end the answer.
        num_top_logprobs: Alternatives to report per token; 0 reports only the chosen one, None reports nothing.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_top_logprobs: int | None = None


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn of a conversation, text only."""

    role: str
    content: str
    name: str | None = None


class ChatInput(msgspec.Struct, frozen=True, kw_only=True, tag="chat"):
    """A conversation to continue.

    Attributes:
        messages: The turns so far.
        params: Sampling of each choice.
        num_choices: Independent answers to generate.
        stream: Whether increments are wanted; without, only the result is sent.
        template_kwargs: Further variables of the model's chat template.
        model_name: The name under which the client asked for the model: an alias may stand for an adapter.
    """

    messages: tuple[ChatMessage, ...]
    params: SamplingParams = SamplingParams()
    num_choices: int = 1
    stream: bool = False
    template_kwargs: dict[str, TemplateValue] = {}
    model_name: str = ""


class CompletionInput(msgspec.Struct, frozen=True, kw_only=True, tag="completion"):
    """Raw prompts to continue, as text or token ids; ``num_choices`` answers for each, prompt by prompt.

    Attributes:
        echo: Whether the prompt's text precedes the generated one.
        model_name: As in `ChatInput`.
    """

    prompts: tuple[str | tuple[int, ...], ...]
    params: SamplingParams = SamplingParams()
    num_choices: int = 1
    stream: bool = False
    echo: bool = False
    model_name: str = ""


class TopToken(msgspec.Struct, frozen=True, array_like=True):
    """A token that could have been chosen; ``raw`` are its bytes, which need not be whole characters."""

    text: str
    raw: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The chosen token and the likeliest ones at its place, most likely first."""

    chosen: TopToken
    top: tuple[TopToken, ...] = ()


class TextDelta(msgspec.Struct, frozen=True, kw_only=True, tag="delta", omit_defaults=True):
    """What became certain of one choice since the last delta.

    Attributes:
        choice: Index over all prompts and choices of the request.
        text: Whole characters only; empty where an end token or held-back text brings none.
        num_tokens: Tokens that this delta accounts for.
        logprobs: Of these tokens, when asked for.
        finish_reason: Set in the last delta of the choice.
    """

    choice: int
    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finished answer."""

    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()


class Generation(msgspec.Struct, frozen=True, kw_only=True, tag="generation"):
    """The finished request: its choices in order of their index."""

    choices: tuple[Choice, ...]
