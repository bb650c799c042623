"""What is kept of files and batches, and how a client sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from sixfold.core.batches.objects import BatchObject, FileObject
from sixfold.core.jobs import Job
from sixfold.core.object_ids import object_id

FILE = "file"
BATCH = "batch"
"""Kinds of jobs. The state of a file is its purpose, so that lists can be narrowed by it."""

VALIDATING = "validating"
IN_PROGRESS = "in_progress"
FINALIZING = "finalizing"
CANCELLING = "cancelling"
COMPLETED = "completed"
FAILED = "failed"
EXPIRED = "expired"
CANCELLED = "cancelled"

OPEN = (VALIDATING, IN_PROGRESS, FINALIZING, CANCELLING)
ENDED = (COMPLETED, FAILED, EXPIRED, CANCELLED)


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a file's job.

    Attributes:
        filename: As the client named it; never a path.
        num_bytes: Its length.
        stored_id: In the file store.
        expires_s: Unix seconds after which it is removed; None for never.
    """

    filename: str
    num_bytes: int
    stored_id: str
    expires_s: float | None

    @classmethod
    def of(cls, job: Job) -> FileRecord:
        """Reads a job's payload."""
        return msgspec.convert(job.payload, cls)

    def payload(self) -> Mapping[str, Any]:
        """As `JobStore` keeps it."""
        payload: dict[str, Any] = msgspec.to_builtins(self)
        return payload


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with an input file, as OpenAI's clients read it; lines count from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchUsage(msgspec.Struct, kw_only=True):
    """Tokens of all answers together."""

    input_tokens: int = 0
    input_tokens_details: dict[str, int] = msgspec.field(default_factory=lambda: {"cached_tokens": 0})
    output_tokens: int = 0
    output_tokens_details: dict[str, int] = msgspec.field(default_factory=lambda: {"reasoning_tokens": 0})
    total_tokens: int = 0


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a batch's job.

    Attributes:
        endpoint: The path that all its lines ask for.
        input_file_id: The client's file.
        completion_window: As the client said.
        expires_s: Unix seconds at which it stops.
        keep_files_s: How long its result files are kept.
        metadata: The client's own.
        model: The model of its lines, if they have one in common.
        num_lines: Of the input file; 0 until it was read.
        num_completed: As of its end.
        num_failed: As of its end.
        errors: Why the input file was refused.
        ends_as: The state that it is on the way to.
        output_file_id: Of the lines that were answered.
        error_file_id: Of those that were not.
        usage: As of its end.
        times_s: Unix seconds at which it came into each state.
    """

    endpoint: str
    input_file_id: str
    completion_window: str
    expires_s: float
    keep_files_s: float
    metadata: dict[str, str] | None = None
    model: str | None = None
    num_lines: int = 0
    num_completed: int = 0
    num_failed: int = 0
    errors: tuple[LineError, ...] = ()
    ends_as: str = COMPLETED
    output_file_id: str | None = None
    error_file_id: str | None = None
    usage: BatchUsage | None = None
    times_s: dict[str, float] = {}

    @classmethod
    def of(cls, job: Job) -> BatchRecord:
        """Reads a job's payload."""
        return msgspec.convert(job.payload, cls)

    def payload(self) -> Mapping[str, Any]:
        """As `JobStore` keeps it."""
        payload: dict[str, Any] = msgspec.to_builtins(self)
        return payload


def derived_id(prefix: str, *parts: object, store_id: str = "") -> str:
    """An id that follows from others, so that what is done twice gets one name; unguessable where they are."""
    return object_id(prefix, store_id, hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:32])


def file_object(job: Job) -> FileObject:
    """OpenAI's File."""
    record = FileRecord.of(job)
    return {
        "id": job.id,
        "object": "file",
        "bytes": record.num_bytes,
        "created_at": int(job.created_s),
        "expires_at": None if record.expires_s is None else int(record.expires_s),
        "filename": record.filename,
        "purpose": job.state,
        "status": "processed",
        "status_details": None,
    }


def batch_object(job: Job, counts: tuple[int, int]) -> BatchObject:
    """OpenAI's Batch.

    Args:
        job: The batch.
        counts: Lines that were answered, and lines that failed, up to now.
    """
    record = BatchRecord.of(job)
    times = {state: int(time_s) for state, time_s in record.times_s.items()}
    errors = {"object": "list", "data": msgspec.to_builtins(record.errors)} if record.errors else None
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": record.endpoint,
        "model": record.model,
        "errors": errors,
        "input_file_id": record.input_file_id,
        "completion_window": record.completion_window,
        "status": job.state,
        "output_file_id": record.output_file_id,
        "error_file_id": record.error_file_id,
        "created_at": int(job.created_s),
        "expires_at": int(record.expires_s),
        "in_progress_at": times.get(IN_PROGRESS),
        "finalizing_at": times.get(FINALIZING),
        "completed_at": times.get(COMPLETED),
        "failed_at": times.get(FAILED),
        "expired_at": times.get(EXPIRED),
        "cancelling_at": times.get(CANCELLING),
        "cancelled_at": times.get(CANCELLED),
        "request_counts": {"total": record.num_lines, "completed": counts[0], "failed": counts[1]},
        "usage": msgspec.to_builtins(record.usage),
        "metadata": record.metadata,
    }
