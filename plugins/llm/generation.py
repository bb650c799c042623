"""What a generation request and its answer look like between the HTTP face and the runtime; both sides import only this."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sixfold.plugins.llm.kv_handle import KvHandle

FinishReason = Literal["stop", "length"]
GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]
TemplateValue = str | int | float | bool | None
ImageDetail = Literal["auto", "low", "high"]


class GrammarSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an answer must look like, to the character.

    Attributes:
        kind: How ``text`` is to be read.
        text: A JSON schema; a regular expression; a JSON list of strings; a grammar in Lark's or llama.cpp's notation.
            Empty for ``json_object``.
        param: The parameter that it came from, for the error that a bad one gets.
        is_compact: Whether JSON has no whitespace at all; otherwise it may have one space where it may have any.
    """

    kind: GrammarKind
    text: str = ""
    param: str = "response_format"
    is_compact: bool = False


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
        grammar: What the answer must look like; None for free text.
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
    grammar: GrammarSpec | None = None


class KvTransferParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a request's prompt leaves for another process, or comes from one.

    Attributes:
        wants_handle: Whether the prompt's blocks shall be kept for another process.
        handle: Where the prompt's blocks are.
    """

    wants_handle: bool = False
    handle: KvHandle | None = None


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the model may call.

    Attributes:
        name: Its name.
        description: What it does.
        parameters: The JSON schema of its arguments; None if it was not told: any object.
        is_strict: Whether the schema must be honoured in full; otherwise keywords that can't be enforced are hints.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    is_strict: bool = False


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model made in an earlier turn; ``arguments`` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


class ImagePart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image in a turn.

    Attributes:
        data: A file as the client sent it; nothing is known of it yet.
        detail: How closely the model shall look.
        param: Where it came from, for errors.
    """

    data: bytes
    detail: ImageDetail = "auto"
    param: str = "messages"


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        content: Its text; empty where the turn is nothing but calls.
        parts: Text and images in their order, where there are images.
        name: Who speaks, if the client tells.
        reasoning: What the model thought before its answer, if the client sends it back.
        tool_calls: Of an assistant's turn.
        tool_call_id: Of a tool's turn: the call that it answers.
    """

    role: str
    content: str
    parts: tuple[str | ImagePart, ...] = ()
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """Its images, in order."""
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


class ChatInput(msgspec.Struct, frozen=True, kw_only=True, tag="chat"):
    """A conversation to continue.

    Attributes:
        messages: The turns so far.
        params: Sampling of each choice.
        num_choices: Independent answers to generate.
        stream: Whether increments are wanted; without, only the result is sent.
        template_kwargs: Further variables of the model's chat template.
        cache_salt: Only requests of the same salt share cached prefixes.
        tools: What the model may call; empty where it may not.
        must_call: Whether the answer has to be a call.
        must_call_name: The one tool to call; None leaves the choice.
        allow_parallel_calls: Whether an answer may have several calls.
        adapter: Name of the adapter that answers; None for the model alone.
        kv_transfer: Whether another process computes or decodes the prompt.
    """

    messages: tuple[ChatMessage, ...]
    params: SamplingParams = SamplingParams()
    num_choices: int = 1
    stream: bool = False
    template_kwargs: dict[str, TemplateValue] = {}
    cache_salt: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    must_call: bool = False
    must_call_name: str | None = None
    allow_parallel_calls: bool = True
    adapter: str | None = None
    kv_transfer: KvTransferParams | None = None


class CompletionInput(msgspec.Struct, frozen=True, kw_only=True, tag="completion"):
    """Raw prompts to continue, as text or token ids; ``num_choices`` answers for each, prompt by prompt.

    Attributes:
        echo: Whether the prompt's text precedes the generated one.
        cache_salt: Only requests of the same salt share cached prefixes.
        adapter: As in `ChatInput`.
        kv_transfer: As in `ChatInput`; only with one prompt.
    """

    prompts: tuple[str | tuple[int, ...], ...]
    params: SamplingParams = SamplingParams()
    num_choices: int = 1
    stream: bool = False
    echo: bool = False
    cache_salt: str | None = None
    adapter: str | None = None
    kv_transfer: KvTransferParams | None = None


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
        opens_in_reasoning: Whether the prompt ended within the model's reasoning, so that the answer begins with it.
    """

    choice: int
    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    opens_in_reasoning: bool = False


class Choice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finished answer; ``opens_in_reasoning`` as in `TextDelta`."""

    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    opens_in_reasoning: bool = False


class Generation(msgspec.Struct, frozen=True, kw_only=True, tag="generation", omit_defaults=True):
    """The finished request: its choices in order of their index, and where its prompt's blocks can be fetched."""

    choices: tuple[Choice, ...]
    kv_handle: KvHandle | None = None
