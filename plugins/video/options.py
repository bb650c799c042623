"""The options of a video model's registry entry."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class VideoOptions(BaseModel):
    """What an operator may set for a model of ``video/diffusers``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights. ``auto`` is bfloat16 on an accelerator and float32 on a CPU. A VAE that is known to lose its
    picture in half precision (Wan's) stays in float32 under ``auto``."""
    default_width: int | None = Field(default=None, ge=16)
    """Width without ``size`` in the request. None takes the pipeline's own default."""
    default_height: int | None = Field(default=None, ge=16)
    """Height without ``size`` in the request. None takes the pipeline's own default."""
    default_frames: int | None = Field(default=None, ge=1)
    """Frames without ``seconds`` and ``num_frames`` in the request. None takes the pipeline's own default."""
    default_fps: int | None = Field(default=None, ge=1, le=120)
    """Frames a second of the file. None takes what the pipeline's authors trained it for, or 16 if that is unknown."""
    default_steps: int | None = Field(default=None, ge=1)
    """Denoising steps without ``num_inference_steps`` in the request. None takes the pipeline's own default."""
    default_guidance_scale: float | None = Field(default=None, ge=0)
    """Guidance without ``guidance_scale`` in the request. None takes the pipeline's own default."""
    max_pixels: int = Field(default=1920 * 1088, ge=256)
    """Largest width times height of a frame."""
    max_frames: int = Field(default=257, ge=1)
    """Most frames of a clip."""
    max_steps: int = Field(default=100, ge=1)
    """Most denoising steps of a request."""
    max_prompt_characters: int = Field(default=8000, ge=1)
    """Longest prompt. The pipeline's text encoder may read less of it."""
    keep_s: float = Field(default=86_400, gt=0)
    """How long a job and its files are kept after its end; ``expires_at`` in the answers."""
    row_cache_threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    """First-block caching: steps whose first block changes less than this are mostly skipped. None computes all."""
    compile: bool = False
    """Compiles the blocks of the denoiser (``torch.compile``, for any number of rows). Takes minutes at the start. On an H200 a
    step of Wan 1.3B at 480p takes 0.7 of the time (random weights). Not with `parallel` or `row_cache_threshold`."""
    max_cache_bytes: int = Field(default=4 * 1024**3, ge=0)
    """Most memory that caches of all running clips may take; a clip beyond it waits. One always runs."""
    call_arguments: dict[str, str | int | float | bool] = {}
    """Further arguments of every call of the pipeline, by their names there, e.g. ``{"true_cfg_scale": 4.0}``."""
    video_codec: Literal["auto", "h264", "vp9"] = "auto"
    """``h264`` gives mp4, ``vp9`` webm. ``auto`` takes the first that the installed PyAV can write."""
