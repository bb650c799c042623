"""The bodies of ``/v1/chat/completions`` and ``/v1/completions``, as strict as OpenAI's reference.

Every parameter of OpenAI's API is known here. What this server can't honour yet is refused by name in `refusals`, so that
nothing is ignored silently; what OpenAI does not have is an extension and keeps vLLM's name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, field_validator

from sixfold.plugins.llm.schema_structured import (
    MAX_CHOICE_OPTIONS,
    MAX_TOOLS,
    ChoiceOption,
    JsonObject,
    NamedToolChoice,
    Pattern,
    ResponseFormat,
    StrictBody,
    StructuredOutputs,
    ToolBody,
    ToolCallBody,
)

MAX_CHOICES = 128
MAX_PROMPTS = 2048
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]


class StreamOptions(StrictBody):
    """Options of a stream."""

    include_usage: bool = False
    """Whether a last chunk counts the tokens."""
    include_obfuscation: bool | None = None
    """Random padding against traffic analysis; only false can be honoured."""


class KvTransferBody(StrictBody):
    """vLLM's ``kv_transfer_params``: how the prompt is computed by one server and the answer given by another."""

    do_remote_decode: bool = False
    """The answer's ``kv_transfer_params`` shall have a handle of the prompt, for another server."""
    do_remote_prefill: bool = False
    """Accepted; it is the handle that counts."""
    handle: JsonObject | None = None
    """From another server's answer, unchanged."""


class GenerationBody(StrictBody):
    """What both endpoints share."""

    model: str
    """Name or alias of the model."""
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    """Answers per prompt."""
    stream: bool | None = None
    """Send tokens as they come."""
    stream_options: StreamOptions | None = None
    """Only with ``stream``."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of an answer."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 takes the likeliest token."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Keeps the likeliest tokens that reach this probability."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """On tokens that occurred in the answer."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """On tokens by how often they occurred in the answer."""
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(default=None, max_length=1024)
    """Addends by token id."""
    seed: int | None = Field(default=None, ge=-(2**63), le=2**64 - 1)
    """Makes sampling repeatable."""
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    """Strings that end the answer."""
    user: str | None = None
    """Accepted and not used."""
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    """Extension: keeps this many tokens; 0 or -1 keeps all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Extension: drops tokens below this share of the likeliest."""
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    """Extension: on tokens of prompt and answer; above 1 discourages."""
    min_tokens: int = Field(default=0, ge=0)
    """Extension: no end before this many tokens."""
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=128)
    """Extension: tokens that end the answer."""
    ignore_eos: bool = False
    """Extension: the model's end tokens do not end the answer."""
    cache_salt: str | None = Field(default=None, min_length=1, max_length=1024)
    """Extension: only requests of the same salt share cached prefixes."""

    kv_transfer_params: KvTransferBody | None = None
    """Extension: whether another server computes or decodes the prompt."""

    structured_outputs: StructuredOutputs | None = None
    """Extension: what the answer must look like."""
    guided_json: JsonObject | str | None = None
    """Extension: ``structured_outputs.json`` as older clients of vLLM name it; as the next three."""
    guided_regex: Pattern | None = None
    """Extension: ``structured_outputs.regex``."""
    guided_choice: Annotated[list[ChoiceOption], Field(min_length=1, max_length=MAX_CHOICE_OPTIONS)] | None = None
    """Extension: ``structured_outputs.choice``."""
    guided_grammar: Pattern | None = None
    """Extension: ``structured_outputs.grammar``."""

    @field_validator("logit_bias")
    @classmethod
    def _keys_are_token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdecimal() and len(key) <= 10):
                raise ValueError(f"keys must be token ids, not {key[:40]!r}")
        return value


class ImageUrl(StrictBody):
    """OpenAI's ``image_url``."""

    url: str
    """A ``data:`` URL, or an address that the server's configuration allows."""
    detail: Literal["auto", "low", "high"] | None = None
    """``low``: 512 pixels a side at most, in one piece; else as the model's processor does."""


class ContentPart(StrictBody):
    """A part of a message's content: text or an image. The type is checked by `refusals`, to name it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    type: str
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(StrictBody):
    """One turn. Fields that clients echo from earlier answers are known but must be empty."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[JsonValue] | None = None
    audio: JsonValue = None
    function_call: JsonValue = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatBody(GenerationBody):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    """The conversation."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """The newer name of ``max_tokens``."""
    logprobs: bool | None = None
    """Report log probabilities."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """Alternatives to report per token; only with ``logprobs``."""
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = Field(default=None, max_length=32)
    """Extension: further variables of the model's chat template."""

    metadata: dict[str, JsonValue] | None = None
    """Accepted and not used."""
    safety_identifier: str | None = None
    """Accepted and not used."""
    prompt_cache_key: str | None = None
    """Accepted and not used."""
    prompt_cache_retention: str | None = None
    """Accepted and not used."""
    service_tier: str | None = None
    """Only "auto" and "default"."""
    store: bool | None = None
    """Only false."""
    parallel_tool_calls: bool | None = None
    """Whether an answer may have several calls; true by default."""
    modalities: list[str] | None = None
    """Only ["text"]."""
    response_format: ResponseFormat | None = None
    """Free text, any JSON object, or JSON of a schema."""
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] | None = None
    """Functions that the model may call."""
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    """Whether it must."""
    audio: JsonValue = None
    """Refused."""
    function_call: JsonValue = None
    """Refused."""
    functions: JsonValue = None
    """Refused."""
    moderation: JsonValue = None
    """Refused."""
    prediction: JsonValue = None
    """Refused."""
    reasoning_effort: JsonValue = None
    """Refused."""
    verbosity: JsonValue = None
    """Refused."""
    web_search_options: JsonValue = None
    """Refused."""


Prompt = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class CompletionBody(GenerationBody):
    """Body of ``POST /v1/completions``."""

    prompt: Prompt
    """Text, texts, token ids, or lists of token ids."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """Alternatives to report per token."""
    echo: bool | None = None
    """Put the prompt before the answer."""
    best_of: int | None = Field(default=None, ge=1)
    """Only equal to ``n``."""
    suffix: str | None = None
    """Refused."""
