"""The body of ``/v1/responses``, as strict as OpenAI's reference; what can't be honoured is known, to be refused by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue

from sixfold.plugins.llm.schema import MAX_TOP_LOGPROBS
from sixfold.plugins.llm.schema_structured import MAX_TOOLS, JsonObject, StrictBody, ToolName

MAX_ITEMS = 10_000


class ContentPart(StrictBody):
    """A part of a message: text or an image. The type is checked in `responses_requests`, to name it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    type: str
    text: str | None = None
    image_url: str | None = None
    """A ``data:`` URL, or an address that the server's configuration allows."""
    detail: Literal["auto", "low", "high", "original"] | None = None
    """``low``: 512 pixels a side at most, in one piece; else as the model's processor does."""


class InputItem(StrictBody):
    """An item of the conversation: a message, a call, its output or reasoning. What its type needs is checked later."""

    type: str = "message"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] | None = None
    phase: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    encrypted_content: str | None = None


class TextFormat(StrictBody):
    """OpenAI's ``text.format``."""

    type: Literal["text", "json_object", "json_schema"]
    name: ToolName | None = None
    description: str | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextConfig(StrictBody):
    """OpenAI's ``text``."""

    format: TextFormat | None = None
    """Free text, any JSON object, or JSON of a schema."""
    verbosity: JsonValue = None
    """Refused."""


class FunctionTool(StrictBody):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class NamedFunction(StrictBody):
    """A ``tool_choice`` that names a function."""

    type: Literal["function"]
    name: str


class ReasoningConfig(StrictBody):
    """OpenAI's ``reasoning``; every field is refused unless it is null."""

    effort: JsonValue = None
    summary: JsonValue = None
    generate_summary: JsonValue = None
    context: JsonValue = None
    mode: JsonValue = None


class StreamOptions(StrictBody):
    """Options of a stream."""

    include_obfuscation: bool | None = None
    """Only false."""


class ResponsesBody(StrictBody):
    """Body of ``POST /v1/responses``."""

    model: str
    """Name or alias of the model."""
    input: Annotated[str, Field(min_length=1)] | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS)]
    """What the user says, or the conversation since the previous response."""
    instructions: str | None = None
    """A system message before everything; not carried over to later responses."""
    previous_response_id: str | None = None
    """A stored response whose conversation goes on."""
    store: bool | None = None
    """Whether the response can be retrieved and continued; true by default."""
    stream: bool | None = None
    """Send events as they come."""
    stream_options: StreamOptions | None = None
    """Only with ``stream``."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of the answer, reasoning included."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 takes the likeliest token."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Keeps the likeliest tokens that reach this probability."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """Alternatives to report per token."""
    include: list[str] | None = None
    """Only "message.output_text.logprobs"; "reasoning.encrypted_content" is accepted: reasoning is not encrypted."""
    text: TextConfig | None = None
    """What the answer must look like."""
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    """Functions that the model may call."""
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    """Whether it must."""
    parallel_tool_calls: bool | None = None
    """Whether an answer may have several calls; true by default."""
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    """Kept with the response."""
    user: str | None = None
    """Accepted and not used."""
    safety_identifier: str | None = None
    """Accepted and not used."""
    prompt_cache_key: str | None = None
    """Accepted and not used."""
    prompt_cache_retention: str | None = None
    """Accepted and not used."""
    service_tier: str | None = None
    """Only "auto" and "default"."""
    truncation: str | None = None
    """Only "disabled"."""
    background: bool | None = None
    """Only false."""
    reasoning: ReasoningConfig | None = None
    """Refused unless empty."""

    seed: int | None = Field(default=None, ge=-(2**63), le=2**64 - 1)
    """Extension: makes sampling repeatable."""
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    """Extension: keeps this many tokens; 0 or -1 keeps all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Extension: drops tokens below this share of the likeliest."""
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    """Extension: on tokens of prompt and answer; above 1 discourages."""
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = Field(default=None, max_length=32)
    """Extension: further variables of the model's chat template."""

    access_programs: JsonValue = None
    """Refused; as all that follow."""
    background_options: JsonValue = None
    context_management: JsonValue = None
    conversation: JsonValue = None
    image: JsonValue = None
    max_tool_calls: JsonValue = None
    moderation: JsonValue = None
    prompt: JsonValue = None
    prompt_cache_options: JsonValue = None


class NoQuery(StrictBody):
    """The query of a route that takes none."""
