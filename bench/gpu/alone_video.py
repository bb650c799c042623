"""Clips: each optimisation of a denoiser's step alone, in turns; see `alone.py`."""

from __future__ import annotations

from typing import Any

import torch
from alone_caches import measure_caches
from alone_image import Denoiser, measure_forwards
from alone_timing import Notes


def measure_clips(notes: Notes, *, tiny: bool) -> None:
    """Wan 2.1 1.3B, 480p, 17 frames: forwards, and row caches over a denoising of their own."""
    import diffusers

    device, dtype = ("cpu", torch.float32) if tiny else ("cuda", torch.bfloat16)
    sizes: dict[str, Any] = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
    if tiny:
        sizes = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "text_dim": 32}
    with torch.device(device):
        module = diffusers.WanTransformer3DModel(**sizes).to(dtype).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in module.parameters():
        parameter.normal_(0, 0.02, generator=generator)
    shape = (16, 2, 8, 8) if tiny else (16, 5, 60, 104)
    noise = torch.randn(1, *shape, device=device, dtype=dtype, generator=generator)
    text = torch.randn(1, 16 if tiny else 512, module.config.text_dim, device=device, dtype=dtype, generator=generator)

    def given(count: int, latents: Any = noise, time: float = 500.0) -> dict[str, Any]:
        times = torch.full((count,), time, device=device)
        many = [each.expand(count, *each.shape[1:]).contiguous() for each in (latents, text)]
        return {"hidden_states": many[0], "timestep": times, "encoder_hidden_states": many[1], "return_dict": False}

    @torch.no_grad()
    def draw(steps: int = 4 if tiny else 20) -> Any:
        latents = noise
        for number in range(steps):  # Euler's method of flow matching
            latents = latents - module(**given(1, latents, 1000.0 * (1 - number / steps)))[0] / steps
        return latents.float().cpu().numpy()

    name = "Wan 2.1 1.3B, 480p, 17 frames"
    place = f"{name}, latents of {4 if tiny else 20} steps"
    measure_caches(notes, "video.row-cache", place, module, draw, (0.12, 0.3, 1.0))
    measure_forwards(notes, "video", name, Denoiser(module), given, (1, 2), 1 if tiny else 2)
