"""Files and batches as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class FileObject(TypedDict):
    """OpenAI's File."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class DeletedFile(TypedDict):
    """The answer to ``DELETE /v1/files/{file_id}``."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class BatchCounts(TypedDict):
    """Lines of a batch."""

    total: int
    completed: int
    failed: int


class BatchObject(TypedDict):
    """OpenAI's Batch; the times are Unix seconds."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: dict[str, Any] | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    usage: dict[str, Any] | None
    metadata: dict[str, str] | None


class FilePage(TypedDict):
    """The answer to ``GET /v1/files``."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchPage(TypedDict):
    """The answer to ``GET /v1/batches``."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
