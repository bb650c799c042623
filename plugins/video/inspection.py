"""Finds the `Capabilities` of a diffusers pipeline: from its signature, its own input check and its components."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import numpy as np

from sixfold.core.errors import ConfigError, SourceError
from sixfold.plugins.video.capabilities import Capabilities
from sixfold.plugins.video.options import VideoOptions

_TRAINED_FPS = {
    "Allegro": 15,
    "AnimateDiff": 8,
    "CogVideoX": 8,
    "Cosmos": 24,
    "EasyAnimate": 8,
    "HunyuanSkyreels": 24,
    "HunyuanVideo": 24,
    "LTX": 24,
    "Latte": 8,
    "Mochi": 30,
    "SanaVideo": 16,
    "SkyReels": 24,
    "Wan": 16,
}
"""By the beginning of the pipeline's class name, as the model cards say. Others get 16."""

_SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor", "vae_scale_factor")
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
DENOISERS = ("transformer", "transformer_2", "unet")
"""Components that a denoising loop calls, by their names in diffusers' pipelines."""
OWN_ARGUMENTS = frozenset(
    "prompt negative_prompt width height num_frames num_inference_steps guidance_scale generator output_type image "
    "return_dict callback_on_step_end callback_on_step_end_tensor_inputs frame_rate num_videos_per_prompt".split()
)


def call_parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    """The parameters of the pipeline's call."""
    return dict(inspect.signature(type(pipeline).__call__).parameters)


def inspect_pipeline(
    pipeline: Any, options: VideoOptions, *, dtype: str, codec: str, row_cache: bool = False
) -> Capabilities:
    """What the pipeline can do under these options.

    Raises:
        ConfigError: An option does not fit the pipeline.
    """
    parameters = call_parameters(pipeline)
    _check_pipeline(pipeline, parameters)
    _check_arguments(parameters, options)
    if options.row_cache_threshold is not None and not row_cache:
        raise ConfigError(
            f"options.row_cache_threshold: {type(pipeline).__name__}'s blocks can't be cached. Remove it."
        )
    width, height = _default_size(pipeline, parameters, options)
    found = Capabilities(
        width=width,
        height=height,
        num_frames=0,
        fps=options.default_fps or _trained_fps(type(pipeline).__name__),
        num_inference_steps=options.default_steps or int(_default(parameters, "num_inference_steps", 50)),
        guidance_scale=float(
            _default(parameters, "guidance_scale", 1.0)
            if options.default_guidance_scale is None
            else options.default_guidance_scale
        ),
        size_multiple=_size_multiple(pipeline),
        frames_multiple=_first_int(pipeline, _TEMPORAL, 1),
        max_pixels=options.max_pixels,
        max_frames=options.max_frames,
        max_steps=options.max_steps,
        max_prompt_characters=options.max_prompt_characters,
        keep_s=options.keep_s,
        image=_image_need(type(pipeline).__name__, parameters),
        negative_prompt=_negative_prompt(parameters, options),
        row_cache=row_cache,
        row_cache_threshold=-1.0 if options.row_cache_threshold is None else options.row_cache_threshold,
        dtype=dtype,
        pipeline=type(pipeline).__name__,
        codec=codec,
    )
    wanted = options.default_frames or min(int(_default(parameters, "num_frames", 49)), options.max_frames)
    num_frames = found.nearest_frames(wanted)
    if options.default_frames not in (None, num_frames):
        raise ConfigError(
            f"options.default_frames is {options.default_frames}; {found.pipeline} makes 1 + a multiple of "
            f"{found.frames_multiple} frames. Use {num_frames}."
        )
    return dataclasses.replace(found, num_frames=num_frames)


def _check_pipeline(pipeline: Any, parameters: dict[str, inspect.Parameter]) -> None:
    missing = sorted({"prompt", "num_frames", "num_inference_steps", "generator", "output_type"} - set(parameters))
    if missing or not hasattr(pipeline, "scheduler"):
        raise SourceError(
            f"{type(pipeline).__name__} makes no videos from a prompt by denoising steps (it takes no "
            f"{', '.join(missing) or 'scheduler'}). Use a text-to-video or image-to-video pipeline of diffusers."
        )


def _check_arguments(parameters: dict[str, inspect.Parameter], options: VideoOptions) -> None:
    for name in options.call_arguments:
        if name not in parameters or name in OWN_ARGUMENTS:
            known = ", ".join(sorted(set(parameters) - OWN_ARGUMENTS - {"self"}))
            raise ConfigError(f"options.call_arguments: {name!r} can't be set. The pipeline takes {known}.")


def _default(parameters: dict[str, inspect.Parameter], name: str, otherwise: Any) -> Any:
    parameter = parameters.get(name)
    value = inspect.Parameter.empty if parameter is None else parameter.default
    return otherwise if value in (None, inspect.Parameter.empty) else value


def _default_size(pipeline: Any, parameters: dict[str, inspect.Parameter], options: VideoOptions) -> tuple[int, int]:
    config = denoiser(pipeline).config
    spatial = _first_int(pipeline, _SPATIAL, 8)
    width = _default(parameters, "width", int(getattr(config, "sample_width", None) or 64) * spatial)
    height = _default(parameters, "height", int(getattr(config, "sample_height", None) or 64) * spatial)
    return options.default_width or int(width), options.default_height or int(height)


def denoiser(pipeline: Any) -> Any:
    """The module that is stepped.

    Raises:
        ConfigError: The pipeline has none that is known.
    """
    for name in DENOISERS:
        module = getattr(pipeline, name, None)
        if module is not None:
            return module
    raise ConfigError(f"{type(pipeline).__name__} has no transformer and no unet; it can't be served step by step.")


def _size_multiple(pipeline: Any) -> int:
    """Of the VAE and the patches, doubled until the pipeline's own check lets it pass."""
    patch: Any = getattr(denoiser(pipeline).config, "patch_size", 1)
    side = int(np.ravel(patch or 1)[-1])  # one number, or (frames, height, width)
    multiple = math.lcm(_first_int(pipeline, _SPATIAL, 8) * side, 2)
    while multiple < 128 and not _passes(pipeline, multiple):
        multiple *= 2
    return multiple


def _passes(pipeline: Any, side: int) -> bool:
    check = getattr(pipeline, "check_inputs", None)
    if check is None:
        return True
    parameters = inspect.signature(check).parameters.values()
    arguments = {p.name: None for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    try:
        check(**{**arguments, "height": side, "width": side})
    except ValueError as error:
        return "divisible" not in str(error)
    except Exception:  # it looked at an argument that is not there: sizes are checked first in every pipeline
        return True
    return True


def _first_int(pipeline: Any, names: tuple[str, ...], otherwise: int) -> int:
    for name in names:
        value = getattr(pipeline, name, None)
        if isinstance(value, int):
            return value
    return otherwise


def _trained_fps(name: str) -> int:
    return next((fps for start, fps in _TRAINED_FPS.items() if name.startswith(start)), 16)


def _image_need(name: str, parameters: dict[str, inspect.Parameter]) -> str:
    image = parameters.get("image")
    if image is None:
        return "no"
    # Some image-to-video pipelines have a default of None for it and fail without one.
    needs = image.default is image.empty or any(word in name for word in ("ImageToVideo", "Image2Video", "I2V"))
    return "required" if needs else "optional"


def _negative_prompt(parameters: dict[str, inspect.Parameter], options: VideoOptions) -> str:
    if "negative_prompt" not in parameters:
        return "never"
    if "true_cfg_scale" in parameters:
        # Here guidance_scale is an embedding of a distilled model; only true guidance has a negative branch.
        scale = options.call_arguments.get("true_cfg_scale", parameters["true_cfg_scale"].default)
        return "always" if isinstance(scale, int | float) and scale > 1 else "never"
    return "guided"
