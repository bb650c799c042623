"""What clients send to ``/v1/embeddings``, and what crosses the process border for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeGuard, cast

import msgspec
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

from sixfold.core.errors import InvalidRequest

TRUNCATE_TO_LIMIT = -1
"""``truncate_prompt_tokens`` that stands for the model's own limit."""


class TextItem(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """A text among images."""

    text: str


class ImageItem(msgspec.Struct, frozen=True, kw_only=True, tag="image"):
    """An image, as the client sent it or as it was fetched; decoded by the worker's pool.

    Attributes:
        encoded: Base64, a data URL or an http URL; "" once it was fetched.
        data: The fetched file.
    """

    encoded: str = ""
    data: bytes = b""

    @property
    def is_remote(self) -> bool:
        """Whether it must be fetched first."""
        return self.encoded[:8].lower().startswith(("http://", "https://"))


Item = TextItem | ImageItem


OutputType = Literal["dense", "sparse", "multi_vector"]
"""What a model can make of a text: one vector, weights of its vocabulary's tokens, or a vector for each token."""


class EmbeddingInput(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The input of one embedding request: texts, token ids or mixed items, always one of them alone.

    Attributes:
        texts: Texts in the client's order; empty if token ids were sent.
        token_ids: Ids of the model's own tokenizer, special tokens included; taken as they are.
        items: Texts and images, at least one of them an image.
        prompt_name: Name of the model's prompt to put before every text; None for the default.
        input_type: Chooses the prompt by what the texts are, if no name was given.
        truncate_tokens: Longer inputs are cut to this many tokens; `TRUNCATE_TO_LIMIT` for the model's limit; None
            refuses what is over the limit.
        dimensions: Leading dimensions to keep of each vector; None for all.
        output_types: What to make of each input; none twice.
    """

    texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    items: tuple[Item, ...] = ()
    prompt_name: str | None = None
    input_type: Literal["query", "document"] | None = None
    truncate_tokens: int | None = None
    dimensions: int | None = None
    output_types: tuple[OutputType, ...] = ("dense",)

    @property
    def num_inputs(self) -> int:
        """How many vectors the client expects."""
        return len(self.texts) + len(self.token_ids) + len(self.items)


class SparseVector(msgspec.Struct, frozen=True, kw_only=True):
    """The weights of some tokens of the model's vocabulary; all others are 0.

    Attributes:
        indices: Little-endian int32 token ids, ascending.
        values: Little-endian float32, as many.
    """

    indices: bytes
    values: bytes


class EmbeddingOutput(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The vectors of one request.

    Attributes:
        vectors: Little-endian float32, row by row in the order of the inputs.
        dimension: Values in each row.
        sparse: One for each input, if they were asked for.
        multi_vectors: For each input little-endian float32 rows, one for each of its tokens, if they were asked for.
        multi_dimension: Values in each of these rows.
    """

    vectors: bytes = b""
    dimension: int = 0
    sparse: tuple[SparseVector, ...] = ()
    multi_vectors: tuple[bytes, ...] = ()
    multi_dimension: int = 0


def _texts_or_ids(value: object) -> EmbeddingInput:
    # By hand: a pydantic union would report the complaint of each form in turn.
    items = [value] if type(value) in (str, dict) else value
    if not _is_list(items):
        raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")
    if not items:
        raise ValueError("must not be empty: send at least one text or one list of token ids")
    if any(type(item) is dict for item in items):
        return of_items([read_item(item, f"[{index}]") for index, item in enumerate(items)])
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


def read_item(value: object, place: str) -> Item:
    """One text or image in any of the forms that clients send.

    Args:
        value: A string, ``{"text": ...}``, ``{"image": ...}``, or OpenAI's ``{"type": "text" | "image_url", ...}``.
        place: For messages.

    Raises:
        ValueError: It is none of these, or empty.
    """
    if type(value) is str:
        found: object = TextItem(text=value)
    elif type(value) is dict:
        found = _from_object(cast("dict[str, Any]", value))
    else:
        found = None
    if not isinstance(found, TextItem | ImageItem):
        raise ValueError(
            f'{place} must be a text, {{"text": ...}}, {{"image": base64 or URL}} or {{"type": "image_url", "image_url": '
            '{"url": ...}}'
        )
    if not (found.text if isinstance(found, TextItem) else found.encoded):
        raise ValueError(f"{place} must not be empty: leave the item out, or send its content")
    return found


def _from_object(value: dict[str, Any]) -> Item | None:
    kind = value.get("type")
    keys = set(value) - {"type"}
    if keys == {"text"} and kind in (None, "text") and type(value["text"]) is str:
        return TextItem(text=value["text"])
    if keys == {"image"} and kind in (None, "image") and type(value["image"]) is str:
        return ImageItem(encoded=value["image"])
    if keys == {"image_url"} and kind in (None, "image_url"):
        return _from_url(value["image_url"])
    return None


def _from_url(url: object) -> ImageItem | None:
    if type(url) is dict:
        fields = cast("dict[str, Any]", url)
        return _from_url(fields.get("url")) if set(fields) <= {"url", "detail"} else None
    return ImageItem(encoded=url) if isinstance(url, str) else None


def of_items(items: list[Item]) -> EmbeddingInput:
    """Plain texts if there is no image among them, so that every model can take them."""
    if any(isinstance(item, ImageItem) for item in items):
        return EmbeddingInput(items=tuple(items))
    return EmbeddingInput(texts=tuple(item.text for item in items if isinstance(item, TextItem)))


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


_InputForms = str | list[str] | list[int] | list[list[int]] | list[dict[str, Any]]


def _messages(value: object) -> EmbeddingInput:
    if not _is_list(value) or not value:
        raise ValueError("must be a list of one message")
    parts: list[Item] = []
    for index, message in enumerate(value):
        fields = cast("dict[str, Any]", message) if type(message) is dict else {}
        content: object = fields.get("content")
        if not content or set(fields) - {"role", "content"}:
            raise ValueError(f"[{index}] must be an object with role and content")
        found: list[Any] = content if _is_list(content) else [content]
        parts += [read_item(part, f"[{index}].content[{place}]") for place, part in enumerate(found)]
    if len(parts) != 1:
        raise ValueError(
            f"has {len(parts)} parts, but a model here makes one vector of one text or image: send them as items of input"
        )
    return of_items(parts)


class EmbeddingsBody(BaseModel):
    """The JSON body of ``POST /v1/embeddings``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str
    """Name or alias of the model."""
    input: Annotated[EmbeddingInput | None, PlainValidator(_texts_or_ids, json_schema_input_type=_InputForms)] = None
    """A text, a list of texts, a list of token ids, or a list of such lists; for models of texts and images also a list of
    ``{"text": ...}``, ``{"image": ...}`` or OpenAI's content parts."""
    messages: Annotated[
        EmbeddingInput | None, PlainValidator(_messages, json_schema_input_type=list[dict[str, Any]])
    ] = None
    """In place of ``input``: one message with one text or image, as vLLM takes it."""
    encoding_format: Literal["float", "base64"] = "float"
    """``base64`` is the little-endian float32 bytes of the vector."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Keeps the leading dimensions and normalises again if the model does (Matryoshka)."""
    output_types: Annotated[tuple[OutputType, ...], Field(min_length=1, strict=False)] = ("dense",)
    """What to make of each input; a type that the model lacks is an error."""
    user: str | None = None
    """The client's own name for its end user; accepted for OpenAI's clients, without effect."""
    prompt_name: str | None = None
    """One of the model's own prompts (``config_sentence_transformers.json``)."""
    input_type: Literal["query", "document"] | None = None
    """Takes the model's prompt for queries or documents; a model without such prompts embeds both alike."""
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """Cuts longer inputs to this many tokens, -1 for the model's limit; without it they are an error."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if len(set(self.output_types)) != len(self.output_types):
            raise InvalidRequest("output_types names one twice.", param="output_types")
        if self.input is None and self.messages is None:
            raise InvalidRequest(
                "Missing required parameter 'input'.", param="input", code="missing_required_parameter"
            )
        if self.input is not None and self.messages is not None:
            raise InvalidRequest("Send input or messages, not both.", param="messages")
        return self

    def request_input(self) -> EmbeddingInput:
        """The whole request as it goes to the model."""
        given = self.input or self.messages
        assert given is not None
        return msgspec.structs.replace(
            given,
            prompt_name=self.prompt_name,
            input_type=self.input_type,
            truncate_tokens=self.truncate_prompt_tokens,
            dimensions=self.dimensions,
            output_types=self.output_types,
        )
