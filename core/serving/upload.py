"""A file that a client uploaded, as a type for the fields of a form's schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a multipart body, whole in memory.

    Attributes:
        filename: As the client named it, without any folder; may be empty. Never use it as a path.
        content_type: As the client said, in lower case; ``application/octet-stream`` if it said nothing.
        data: The bytes; may be empty.
    """

    filename: str
    content_type: str
    data: bytes = field(repr=False)  # what patients say or look like has no place in a log

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(_check)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "format": "binary"}


def _check(value: Any) -> Upload:
    if isinstance(value, Upload):
        return value
    raise PydanticCustomError("upload_type", "Input should be a file of a multipart/form-data body")
