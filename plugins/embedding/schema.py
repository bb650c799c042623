"""What clients send to ``/v1/embeddings``, and what crosses the process border for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeGuard, cast

import msgspec
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

TRUNCATE_TO_LIMIT = -1
"""``truncate_prompt_tokens`` that stands for the model's own limit."""


class EmbeddingInput(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The input of one embedding request: texts or token ids, never both.

    Attributes:
        texts: Texts in the client's order; empty if token ids were sent.
        token_ids: Ids of the model's own tokenizer, special tokens included; taken as they are.
        prompt_name: Name of the model's prompt to put before every text; None for the default.
        input_type: Chooses the prompt by what the texts are, if no name was given.
        truncate_tokens: Longer inputs are cut to this many tokens; `TRUNCATE_TO_LIMIT` for the model's limit; None
            refuses what is over the limit.
        dimensions: Leading dimensions to keep of each vector; None for all.
    """

    texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    prompt_name: str | None = None
    input_type: Literal["query", "document"] | None = None
    truncate_tokens: int | None = None
    dimensions: int | None = None

    @property
    def num_inputs(self) -> int:
        """How many vectors the client expects."""
        return len(self.texts) + len(self.token_ids)


class EmbeddingOutput(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The vectors of one request.

    Attributes:
        vectors: Little-endian float32, row by row in the order of the inputs.
        dimension: Values in each row.
    """

    vectors: bytes
    dimension: int


def _texts_or_ids(value: object) -> EmbeddingInput:
    # By hand: a pydantic union would report the complaint of each form in turn.
    items = [value] if type(value) is str else value
    if not _is_list(items):
        raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")
    if not items:
        raise ValueError("must not be empty: send at least one text or one list of token ids")
    first = type(cast("object", items[0]))
    for index, item in enumerate(items):
        if type(item) is not first or first not in (str, int, list):
            raise ValueError(
                f"[{index}] must be a string, an integer token id or a list of such ids, and all items of one kind"
            )
    if first is str:
        return EmbeddingInput(texts=tuple(_non_empty(items)))
    rows = [items] if first is int else items
    return EmbeddingInput(token_ids=tuple(_token_ids(row, index) for index, row in enumerate(_non_empty(rows))))


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _non_empty(items: list[Any]) -> list[Any]:
    for index, item in enumerate(items):
        if not item:
            raise ValueError(f"[{index}] must not be empty: leave the item out, or send its text")
    return items


def _token_ids(row: list[object], index: int) -> tuple[int, ...]:
    if not all(type(token) is int for token in row):
        raise ValueError(f"[{index}] must hold integer token ids only")
    return cast("tuple[int, ...]", tuple(row))


_InputForms = str | list[str] | list[int] | list[list[int]]


class EmbeddingsBody(BaseModel):
    """The JSON body of ``POST /v1/embeddings``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str
    """Name or alias of the model."""
    input: Annotated[EmbeddingInput, PlainValidator(_texts_or_ids, json_schema_input_type=_InputForms)]
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    encoding_format: Literal["float", "base64"] = "float"
    """``base64`` is the little-endian float32 bytes of the vector."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Keeps the leading dimensions and normalises again if the model does (Matryoshka)."""
    user: str | None = None
    """The client's own name for its end user; accepted for OpenAI's clients, without effect."""
    prompt_name: str | None = None
    """One of the model's own prompts (``config_sentence_transformers.json``)."""
    input_type: Literal["query", "document"] | None = None
    """Takes the model's prompt for queries or documents; a model without such prompts embeds both alike."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """Cuts longer inputs to this many tokens, -1 for the model's limit; without it they are an error."""

    def request_input(self) -> EmbeddingInput:
        """The whole request as it goes to the model."""
        return msgspec.structs.replace(
            self.input,
            prompt_name=self.prompt_name,
            input_type=self.input_type,
            truncate_tokens=self.truncate_prompt_tokens,
            dimensions=self.dimensions,
        )
