"""The options of an image model's registry entry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from sixfold.core.source_ref import SourceRef

_AdapterName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class ImageOptions(BaseModel):
    """What an operator may set for a model of ``image/diffusers``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights. ``auto`` is float32 on a CPU and bfloat16 on a GPU."""
    size: str | None = Field(default=None, pattern=r"^[1-9][0-9]*x[1-9][0-9]*$")
    """Size of a picture whose request names none, as WIDTHxHEIGHT. None takes what the model was trained for."""
    max_pixels: int = Field(default=4_194_304, ge=256)
    """Largest picture that is drawn, and that an input is scaled down to. Uploads may have sixteen times as many."""
    max_n: int = Field(default=10, ge=1)
    """Most pictures of one request."""
    num_inference_steps: int | None = Field(default=None, ge=1)
    """Steps at medium quality. None takes the pipeline's own default."""
    max_inference_steps: int = Field(default=200, ge=1)
    """Most steps that a request may ask for."""
    quality_steps: dict[Literal["low", "medium", "high"], int] = Field(
        default_factory=dict[Literal["low", "medium", "high"], int]
    )
    """Steps of a quality, in place of 0.4, 1 and 1.5 times ``num_inference_steps``."""
    guidance_scale: float | None = Field(default=None, ge=0.0)
    """Guidance where a request names none. None takes the pipeline's own default."""
    strength: float = Field(default=0.8, gt=0.0, le=1.0)
    """How much of an input image is drawn anew, where a request does not say."""
    scheduler: str | None = None
    """Class name of a diffusers scheduler in place of the model's own."""
    row_cache_threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    """First-block caching: steps whose first block changes less than this are mostly skipped. None computes all."""
    preview: Literal["decode", "linear"] = "decode"
    """How partial images are made where a request does not say: by the decoder, or by a linear map, blurred and cheap."""
    max_cache_bytes: int = Field(default=4 * 1024**3, ge=0)
    """Most memory that caches of all running requests may take; a request beyond it waits."""
    text_multiple: int = Field(default=16, ge=0)
    """Lengths of prompts are rounded up to a multiple of this, where the model can mask padding, so that they share
    steps. 0 pads nothing."""
    max_step_units: int = Field(default=65_536, ge=1)
    """Most latent positions of one step."""
    measure_s: float = Field(default=10.0, ge=0.0)
    """Seconds that the start may take to time steps of several pictures, which says how many should share one. With 0 this
    is learned from the first requests."""
    lora: dict[_AdapterName, SourceRef] = {}
    """Sources of LoRA adapters (safetensors) by the names under which requests choose them. All are kept in memory."""
    compile: bool = False
    """Compiles the blocks of the denoiser (``torch.compile``, for any number of rows). Takes minutes at the start."""
    cuda_graph_rows: tuple[Annotated[int, Field(ge=1, le=256)], ...] | None = None
    """Rows of denoiser calls that are recorded as CUDA graphs; merged calls of fewer rows are padded to the next of these.
    None takes 1, 2, 3, 4, 6, 8, 12 and 16 on a GPU; an empty list records nothing. Without effect on a CPU."""
    decode_threads: int = Field(default=1, ge=1)
    """CPU threads of the lane that decodes finished pictures, and encodes given ones, beside the steps."""
