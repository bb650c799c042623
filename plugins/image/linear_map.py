"""Previews without the decoder: a linear map from a latent position to the colour of the pixels that it stands for.

The autoencoders of diffusion models keep a picture's layout, and most of a position's mean colour is a linear function of
its channels. The map is found for each model from its own autoencoder, by least squares over smooth coloured pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_NUM_PICTURES = 8
_NUM_POSITIONS = (
    8  # along a side: 512 in all, many times the channels of an autoencoder, for the cost of one small picture
)
_GRIDS = (1, 2, 3, 5)  # of the colours of pictures: from one colour to many


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearMap:
    """From latents, as ``vae.decode`` takes them, to colours.

    Attributes:
        weights: [channels + 1, 3], float32, where the latents are; the last row is added.
    """

    weights: Tensor

    def colours(self, latents: Tensor) -> Image.Image:
        """A picture with one pixel a position.

        Args:
            latents: [1, channels, height, width], or with one frame before the height.
        """
        image = apply(self.weights, latents.float())[0].clamp(-1, 1)
        pixels = ((image + 1) * 127.5).round().to(torch.uint8)
        return Image.fromarray(np.asarray(pixels.cpu()))


def apply(weights: Tensor, latents: Tensor) -> Tensor:
    """[rows, height, width, 3] of [rows, channels, (1,) height, width]."""
    if latents.ndim == 5:
        latents = latents[:, :, 0]
    return latents.movedim(1, -1) @ weights[:-1] + weights[-1]


@torch.no_grad()
def fit_linear_map(vae: Any, scale: int) -> LinearMap:
    """The map that is nearest to the autoencoder's decoder.

    Args:
        vae: Of a pipeline.
        scale: Pixels of a position along a side.
    """
    weight = next(iter(vae.parameters()))
    side = _NUM_POSITIONS * scale
    pictures = coloured_pictures(side).to(device=weight.device, dtype=weight.dtype)
    if any(isinstance(module, torch.nn.Conv3d) for module in vae.modules()):
        pictures = pictures.unsqueeze(2)  # of one frame
    latents: list[Tensor] = []
    colours: list[Tensor] = []
    for picture in torch.split(pictures, 1):  # one at a time: little memory, at the size of a small picture
        encoded = vae.encode(picture)
        latent = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]
        decoded = vae.decode(latent, return_dict=False)[0]
        latents.append(latent.float())
        decoded = decoded[:, :, 0] if decoded.ndim == 5 else decoded
        colours.append(torch.nn.functional.adaptive_avg_pool2d(decoded.float(), latent.shape[-2:]))
    channels = torch.cat(latents).flatten(2).movedim(1, -1).flatten(0, 1)
    known = torch.cat([channels, torch.ones_like(channels[:, :1])], dim=1)
    wanted = torch.cat(colours).flatten(2).movedim(1, -1).flatten(0, 1)
    # On the CPU in float64: it takes milliseconds, and channels may be nearly dependent.
    linalg: Any = torch.linalg  # without types
    found: Any = linalg.lstsq(known.double().cpu(), wanted.double().cpu(), driver="gelsd")
    return LinearMap(weights=found.solution.float().to(weight.device))


def coloured_pictures(side: int) -> Tensor:
    """[pictures, 3, side, side] in -1 to 1, the same each time: random colours on grids from coarse to fine, half of them
    with soft and half with hard edges."""
    generator = torch.Generator().manual_seed(0)
    pictures: list[Tensor] = []
    for index in range(_NUM_PICTURES):
        grid = _GRIDS[index // 2 % len(_GRIDS)]
        colours = torch.rand(1, 3, grid, grid, generator=generator) * 2 - 1
        mode = "bilinear" if index % 2 else "nearest"
        pictures.append(torch.nn.functional.interpolate(colours, size=(side, side), mode=mode))
    return torch.cat(pictures)
