"""The parts of bodies that ask for a form of the answer: response formats, grammars and tools."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

MAX_TOOLS = 128
MAX_CHOICE_OPTIONS = 1024

JsonObject = dict[str, JsonValue]
ToolName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]
Pattern = Annotated[str, Field(min_length=1, max_length=32_768)]
ChoiceOption = Annotated[str, Field(min_length=1, max_length=4096)]


class StrictBody(BaseModel):
    """Unknown fields and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class JsonSchemaFormat(StrictBody):
    """OpenAI's ``response_format.json_schema``."""

    name: ToolName
    """For the client; the model is not told."""
    description: str | None = None
    """Accepted and not used: the schema is enforced, not explained."""
    schema_: JsonObject | None = Field(default=None, alias="schema")
    """The schema; any object if left out."""
    strict: bool | None = None
    """Accepted: every schema is enforced, and one that can't be is refused."""


class ResponseFormat(StrictBody):
    """OpenAI's ``response_format``."""

    type: Literal["text", "json_object", "json_schema"]
    """Free text, any JSON object, or JSON of a schema."""
    json_schema: JsonSchemaFormat | None = None
    """With ``json_schema``."""
    value: JsonObject | None = None
    """With ``json_object``: a JSON schema, as Hugging Face's InferenceClient sends it."""


class StructuredOutputs(StrictBody):
    """vLLM's ``structured_outputs``: exactly one of the first five."""

    json_: JsonObject | str | None = Field(default=None, alias="json")
    """A JSON schema, as an object or as text."""
    regex: Pattern | None = None
    """A regular expression that the whole answer matches."""
    choice: Annotated[list[ChoiceOption], Field(min_length=1, max_length=MAX_CHOICE_OPTIONS)] | None = None
    """The possible answers."""
    grammar: Pattern | None = None
    """A context-free grammar, in Lark's or llama.cpp's notation."""
    json_object: bool | None = None
    """Any JSON object."""
    disable_any_whitespace: bool = False
    """JSON without any whitespace between its parts."""


class FunctionBody(StrictBody):
    """A function that the model may call."""

    name: ToolName
    """Its name."""
    description: str | None = None
    """What it does."""
    parameters: JsonObject | None = None
    """JSON schema of its arguments, an object's."""
    strict: bool | None = None
    """Whether all of the schema must be honoured in a call."""


class ToolBody(StrictBody):
    """OpenAI's ``tools[]``."""

    type: Literal["function"]
    function: FunctionBody


class ToolChoiceName(StrictBody):
    """The function to call."""

    name: str


class NamedToolChoice(StrictBody):
    """OpenAI's ``tool_choice`` that names a function."""

    type: Literal["function"]
    function: ToolChoiceName


class CalledFunction(StrictBody):
    """A call's name and arguments, the latter as text of a JSON object."""

    name: str
    arguments: str


class ToolCallBody(StrictBody):
    """OpenAI's ``messages[].tool_calls[]``; ``index`` is what some clients keep of a stream."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None
