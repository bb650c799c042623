"""What is kept of a video job, and how a client sees it."""

from __future__ import annotations

from typing import Any

import msgspec

from sixfold.core.errors import RequestError
from sixfold.core.jobs import Job
from sixfold.core.messages import Priority
from sixfold.plugins.video.answers import VideoObject
from sixfold.plugins.video.messages import VideoInput

KIND = "video"

QUEUED = "queued"
IN_PROGRESS = "in_progress"
COMPLETED = "completed"
FAILED = "failed"
DELETED = "deleted"  # never shown: its files are being removed

OPEN = (QUEUED, IN_PROGRESS)
VISIBLE = (QUEUED, IN_PROGRESS, COMPLETED, FAILED)


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job failed."""

    code: str
    message: str

    @classmethod
    def of(cls, error: RequestError) -> JobError:
        """From the error that ended its request."""
        return cls(code=error.code or error.type, message=error.message)


class VideoFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Ids in the file store of what a completed job made."""

    video: str
    thumbnail: str
    spritesheet: str
    media_type: str

    @property
    def ids(self) -> tuple[str, ...]:
        """All of them."""
        return (self.video, self.thumbnail, self.spritesheet)


class VideoRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a job.

    Attributes:
        model: As the client named it.
        request: All choices; without the reference's bytes.
        seconds: As answered.
        keep_s: How long to keep it after its end.
        reference: File id of the reference image.
        remixed_from: Id of the job that it varies.
        priority: Of its request.
        num_runs: How often it was begun.
        progress: Percent, as last stored.
        ended_s: Unix seconds.
        files: When completed.
        error: When failed.
    """

    model: str
    request: VideoInput
    seconds: str
    keep_s: float
    reference: str | None = None
    remixed_from: str | None = None
    priority: Priority | None = None
    num_runs: int = 0
    progress: int = 0
    ended_s: float | None = None
    files: VideoFiles | None = None
    error: JobError | None = None

    @property
    def expires_s(self) -> float | None:
        """Unix seconds; None while it has not ended."""
        return None if self.ended_s is None else self.ended_s + self.keep_s

    @property
    def file_ids(self) -> tuple[str, ...]:
        """Everything that it holds in the file store."""
        made = () if self.files is None else self.files.ids
        return made if self.reference is None else (*made, self.reference)

    def payload(self) -> dict[str, Any]:
        """As the job store keeps it."""
        payload: dict[str, Any] = msgspec.to_builtins(self)
        return payload

    @classmethod
    def of(cls, job: Job) -> VideoRecord:
        """The payload of a stored job."""
        return msgspec.convert(job.payload, cls)


def video_object(job: Job, *, progress: int | None = None) -> VideoObject:
    """OpenAI's ``Video``, and the settings that Sixfold adds.

    Args:
        job: As stored.
        progress: Percent of a running job, which is not stored.
    """
    record = VideoRecord.of(job)
    request = record.request
    completed = job.state == COMPLETED
    return {
        "id": job.id,
        "object": "video",
        "model": record.model,
        "status": job.state,
        "progress": 100 if completed else record.progress if progress is None else progress,
        "created_at": int(job.created_s),
        "completed_at": int(record.ended_s) if completed and record.ended_s is not None else None,
        "expires_at": None if record.expires_s is None else int(record.expires_s),
        "seconds": record.seconds,
        "size": f"{request.width}x{request.height}",
        "prompt": request.prompt,
        "remixed_from_video_id": record.remixed_from,
        "error": None if record.error is None else {"code": record.error.code, "message": record.error.message},
        "fps": request.fps,
        "num_frames": request.num_frames,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "row_cache_threshold": request.row_cache_threshold,
    }
