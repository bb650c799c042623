"""What a loaded pipeline can be asked for, found from the pipeline itself; the worker tells it, the HTTP face reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Limits and defaults of one model. Crosses the process border as `ModelInfo.details`.

    Attributes:
        width: Default, in pixels.
        height: Likewise.
        num_frames: Default.
        fps: Default.
        num_inference_steps: Default.
        guidance_scale: Default.
        size_multiple: Width and height must be multiples of it.
        frames_multiple: Frames must be one more than a multiple of it.
        max_pixels: Of a frame.
        max_frames: Of a clip.
        max_steps: Of a request.
        max_prompt_characters: Of a prompt.
        keep_s: How long a job is kept after its end.
        image: Whether it takes a reference image: "no", "optional" or "required".
        negative_prompt: "never", "guided" (has an effect when the guidance scale is above 1) or "always".
        row_cache: Whether its blocks can be cached.
        row_cache_threshold: Default of first-block caching; negative computes every step.
        dtype: Of the weights.
        pipeline: Class of diffusers.
        codec: Of the files.
    """

    width: int
    height: int
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    size_multiple: int
    frames_multiple: int
    max_pixels: int
    max_frames: int
    max_steps: int
    max_prompt_characters: int
    keep_s: float
    image: str
    negative_prompt: str
    row_cache: bool
    row_cache_threshold: float
    dtype: str
    pipeline: str
    codec: str

    def details(self) -> dict[str, Scalar]:
        """As `ModelInfo.details`."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, details: Mapping[str, Scalar]) -> Capabilities:
        """From `ModelInfo.details`."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: details[name] for name in names})  # type: ignore[arg-type]  # written by `details`

    def nearest_frames(self, num_frames: float) -> int:
        """The possible number of frames that is closest to this one."""
        return max(0, round((num_frames - 1) / self.frames_multiple)) * self.frames_multiple + 1

    def nearest_side(self, pixels: int) -> int:
        """The possible width or height that is closest to this one."""
        return max(1, round(pixels / self.size_multiple)) * self.size_multiple
