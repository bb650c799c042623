"""Previews without the decoder are near to what it would show."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from examples.train_tiny import scenes
from examples.train_tiny.render import draw, pack_scenes
from sixfold.plugins.image.linear_map import apply, fit_linear_map
from tests.tiny_pipelines import FAMILIES

D: Any = diffusers
FOLDER = Path(__file__).resolve().parents[3] / "examples" / "tiny_image"


@torch.no_grad()
def test_the_map_shows_the_colours_of_a_trained_autoencoder() -> None:
    vae: Any = D.AutoencoderKL.from_pretrained(FOLDER, subfolder="vae")
    linear_map = fit_linear_map(vae, 4)
    rng = random.Random(5)
    pictures = draw(*pack_scenes([scenes.sample_scene(rng) for _ in range(16)]))
    latents = vae.encode(pictures).latent_dist.mode()
    decoded = vae.decode(latents, return_dict=False)[0]
    wanted = torch.nn.functional.adaptive_avg_pool2d(decoded, latents.shape[-2:]).movedim(1, -1)
    shown = apply(linear_map.weights, latents)
    assert torch.corrcoef(torch.stack([shown.flatten(), wanted.flatten()]))[0, 1] > 0.85
    # Most previews are nearer to their own picture than to any of the fifteen others.
    nearest = torch.cdist(shown.flatten(1), wanted.flatten(1)).argmin(dim=1)
    assert (nearest == torch.arange(16)).sum() >= 12
    assert linear_map.colours(latents[:1]).size == (16, 16)


@pytest.mark.parametrize("name", ["sdxl", "flux", "qwen_image", "sana"])
def test_every_kind_of_autoencoder_has_a_map(name: str) -> None:
    pipeline = FAMILIES[name]().pipeline
    linear_map = fit_linear_map(pipeline.vae, int(pipeline.vae_scale_factor))
    assert torch.isfinite(linear_map.weights).all()
    assert linear_map.weights.shape[1] == 3
