"""Turns the latents of a running pipeline into what its autoencoder decodes, as the end of the pipeline does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def decodable(pipeline: Any, latents: Tensor, width: int, height: int) -> Tensor:
    """The input of ``vae.decode`` for latents as a step leaves them.

    Args:
        pipeline: Any of diffusers' image pipelines; the scaling is read from its autoencoder's config.
        latents: Of one picture: [1, channels, height, width] or packed to [1, tokens, channels].
        width: Of the picture, in pixels.
        height: Likewise.
    """
    if hasattr(pipeline, "_unpack_latents_with_ids"):
        return _normalised_patches(pipeline, latents, width, height)
    if latents.ndim == 3:
        latents = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    config = pipeline.vae.config
    latents = latents.to(pipeline.vae.dtype)
    scaling = getattr(config, "scaling_factor", None) or 1.0
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        shape = (1, -1, *([1] * (latents.ndim - 2)))
        mean, std = (torch.tensor(value).view(shape).to(latents) for value in (mean, std))
        return latents * std / (scaling if latents.ndim == 4 else 1.0) + mean
    return latents / scaling + (getattr(config, "shift_factor", None) or 0.0)


def _normalised_patches(pipeline: Any, latents: Tensor, width: int, height: int) -> Tensor:
    """Of FLUX.2: tokens in the order of rows, normalised by the autoencoder's running statistics."""
    vae, patch = pipeline.vae, 2 * pipeline.vae_scale_factor
    grid = latents.to(vae.dtype).reshape(len(latents), height // patch, width // patch, -1).movedim(-1, 1)
    mean, variance = (value.view(1, -1, 1, 1).to(grid) for value in (vae.bn.running_mean, vae.bn.running_var))
    patches: Tensor = pipeline._unpatchify_latents(grid * torch.sqrt(variance + vae.config.batch_norm_eps) + mean)
    return patches


def decoded_image(pipeline: Any, answer: Any) -> Any:
    """The picture (PIL) of what ``vae.decode(..., return_dict=False)`` returned for one row."""
    sample = answer[0]
    if sample.ndim == 5:  # [rows, channels, frames, height, width]
        sample = sample[:, :, 0]
    return pipeline.image_processor.postprocess(sample.detach(), output_type="pil")[0]


def preview_steps(num_steps: int, num_previews: int) -> tuple[int, ...]:
    """After which steps (from 1) to send previews: evenly spread, none after the last step."""
    wanted = (round(num_steps * (index + 1) / (num_previews + 1)) for index in range(num_previews))
    return tuple(dict.fromkeys(min(max(1, step), num_steps - 1) for step in wanted if num_steps > 1))
