"""What clients send to ``/v1/files`` and ``/v1/batches``."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from sixfold.core.serving.api import StoredUpload

_BODY = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([mhd])")
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86_400.0}
_MAX_WINDOW_S = 30 * 86_400.0

Seconds = Annotated[int, Field(ge=3600, le=2_592_000)]
Purpose = Literal["batch", "user_data"]


class FileExpiry(BaseModel):
    """When an uploaded file is removed."""

    model_config = _BODY

    anchor: Literal["created_at"]
    """From when it counts."""
    seconds: Seconds
    """How long."""


class FileForm(BaseModel):
    """The fields of ``POST /v1/files``."""

    model_config = _BODY

    file: StoredUpload
    """The file."""
    purpose: Purpose
    """``batch`` for the lines of a batch; ``user_data`` for files that these lines name, such as sound."""
    expires_after: FileExpiry | None = None
    """When it is removed, unless after ``server.batches.keep_files_s``."""


class BatchBody(BaseModel):
    """The body of ``POST /v1/batches``."""

    model_config = _BODY

    input_file_id: str = Field(max_length=200)
    """A file of the purpose ``batch``: one JSON object a line, with custom_id, method, url and body."""
    endpoint: str = Field(max_length=200)
    """The path that all lines ask for, e.g. ``/v1/chat/completions``."""
    completion_window: str = Field(max_length=8)
    """Until when to work on it: ``24h``, or any number of minutes, hours or days (``90m``, ``7d``) up to 30 days."""
    metadata: (
        Annotated[
            dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    """The client's own words; comes back."""
    output_expires_after: FileExpiry | None = None
    """When the result files are removed."""

    @field_validator("completion_window")
    @classmethod
    def _window_is_readable(cls, value: str) -> str:
        window_s(value)
        return value


class FilesQuery(BaseModel):
    """The query of ``GET /v1/files``."""

    model_config = _BODY

    purpose: Literal["batch", "batch_output", "user_data"] | None = None
    """Only files of this purpose."""
    limit: int = Field(default=10_000, ge=1, le=10_000)
    """How many at most."""
    order: Literal["asc", "desc"] = "desc"
    """By creation."""
    after: str | None = Field(default=None, max_length=200)
    """The id of the last file of the page before."""


class BatchesQuery(BaseModel):
    """The query of ``GET /v1/batches``."""

    model_config = _BODY

    limit: int = Field(default=20, ge=1, le=100)
    """How many at most."""
    after: str | None = Field(default=None, max_length=200)
    """The id of the last batch of the page before."""


def window_s(text: str) -> float:
    """The seconds of a ``completion_window``.

    Raises:
        ValueError: It is none.
    """
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0.0 < seconds <= _MAX_WINDOW_S:
        raise ValueError("use 24h, or a number of minutes, hours or days up to 30d, such as 90m, 12h or 7d")
    return seconds
