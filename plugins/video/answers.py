"""Videos as OpenAI's clients read them, with the settings that Sixfold adds."""

from __future__ import annotations

from typing import Literal, TypedDict


class VideoError(TypedDict):
    """Why a video failed."""

    code: str
    message: str


class VideoObject(TypedDict):
    """OpenAI's Video; the times are Unix seconds."""

    id: str
    object: Literal["video"]
    model: str
    status: str
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    seconds: str
    size: str
    prompt: str
    remixed_from_video_id: str | None
    error: VideoError | None
    fps: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str | None
    seed: int
    row_cache_threshold: float | None


class VideoPage(TypedDict):
    """The answer to ``GET /v1/videos``."""

    object: Literal["list"]
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(TypedDict):
    """The answer to ``DELETE /v1/videos/{video_id}``."""

    id: str
    object: Literal["video.deleted"]
    deleted: Literal[True]
