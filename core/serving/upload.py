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


@dataclass(frozen=True, slots=True)
class StoredUpload:
    """A file of a multipart body that went to a `sixfold.core.files.FileStore` as it came; see `Call.form`.

    Attributes:
        filename: As `Upload.filename`.
        content_type: As `Upload.content_type`.
        file_id: In the store. Whoever got it removes it there.
        num_bytes: Its length; may be 0.
    """

    filename: str
    content_type: str
    file_id: str
    num_bytes: int

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(_check_stored)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "format": "binary"}


def _check_stored(value: Any) -> StoredUpload:
    if isinstance(value, StoredUpload):
        return value
    raise PydanticCustomError("upload_type", "Input should be a file of a multipart/form-data body")


def _check(value: Any) -> Upload:
    if isinstance(value, Upload):
        return value
    raise PydanticCustomError("upload_type", "Input should be a file of a multipart/form-data body")
