"""What clients send to ``/v1/videos`` and its sub-routes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sixfold.core.serving.api import Upload

_SIZE = re.compile(r"^\s*(\d{1,5})\s*[xX]\s*(\d{1,5})\s*$")

MAX_SEED = 2**63 - 1


def _seconds(value: Any) -> Any:
    # The OpenAI client types it as a string ("4"), people write numbers: both mean the same.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f'{value[:20]!r} is no number of seconds; send for example "4"') from None
    return value


class ImageReference(BaseModel):
    """A reference image that is named instead of sent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    image_url: str | None = None
    """A ``data:`` URL, or an address where the server's ``fetch_urls`` allows it."""
    file_id: str | None = None
    """Refused: this server has no Files API."""


class VideoSettings(BaseModel):
    """The settings that Sixfold adds to OpenAI's; without effect on requests that leave them out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    negative_prompt: str | None = None
    """What to keep out of the picture, for pipelines that take one."""
    fps: Annotated[int, Field(ge=1, le=120)] | None = None
    """Frames a second of the file."""
    num_frames: Annotated[int, Field(ge=1)] | None = None
    """Frames of the clip, instead of ``seconds``."""
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    """Denoising steps."""
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    """How closely to follow the prompt, in the pipeline's own meaning."""
    row_cache_threshold: Annotated[float, Field(le=1.0, allow_inf_nan=False)] | None = None
    """First-block caching: steps that change less than this are mostly skipped; negative computes every step."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    """Of the initial noise: the same request with the same seed gives the same clip."""


class CreateBody(VideoSettings):
    """The body of ``POST /v1/videos``, as JSON or as a form."""

    prompt: Annotated[str, Field(min_length=1)]
    """What to show."""
    model: str | None = None
    """Name or alias of the model; may be left out when the server has exactly one for video."""
    input_reference: Upload | ImageReference | None = None
    """An image of the clip's size for the clip to start from."""
    seconds: Annotated[float, BeforeValidator(_seconds), Field(gt=0, le=3600, allow_inf_nan=False)] | None = None
    """Length of the clip; rounded to a number of frames that the model can make."""
    size: str | None = None
    """``WIDTHxHEIGHT`` in pixels."""
    user: str | None = None
    """The client's own name for its end user; accepted for OpenAI's clients, without effect."""


class RemixBody(BaseModel):
    """The body of ``POST /v1/videos/{id}/remix``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str, Field(min_length=1)]
    """What to show instead."""


class ListQuery(BaseModel):
    """The query of ``GET /v1/videos``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = None
    """The last id of the page before."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    """Most items of a page."""
    order: Literal["asc", "desc"] = "desc"
    """By time of creation."""


class ContentQuery(BaseModel):
    """The query of ``GET /v1/videos/{id}/content``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Literal["video", "thumbnail", "spritesheet"] = "video"
    """Which file."""


def parse_size(size: str) -> tuple[int, int]:
    """Width and height.

    Raises:
        ValueError: It has another form.
    """
    match = _SIZE.match(size)
    if match is None or "0" in (match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"):
        raise ValueError(f'{size[:40]!r} is no size; send width and height in pixels, for example "832x480"')
    return int(match[1]), int(match[2])
