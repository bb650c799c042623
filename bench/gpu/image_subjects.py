"""The pipelines that the GPU bench draws with: real sizes, random weights, no text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def sdxl(tiny: bool) -> Any:
    """Stable Diffusion XL's UNet and autoencoder."""
    import diffusers
    import torch

    wide = {
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    small = {
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": 1,
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 1280 + 48,
        "norm_num_groups": 8,
    }
    unet = diffusers.UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        **(small if tiny else wide),
    )
    with torch.device("cpu"):  # where `from_pretrained` leaves it, too
        scheduler = diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        )
    return diffusers.StableDiffusionXLPipeline(
        vae=kl_vae(tiny, 4, scaling_factor=0.13025),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=scheduler,
    )


def flux(tiny: bool) -> Any:
    """Flux.1-dev's transformer and autoencoder."""
    import diffusers

    sizes = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2} if tiny else {}
    transformer = diffusers.FluxTransformer2DModel(guidance_embeds=True, **sizes)
    return diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=kl_vae(
            tiny, 16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )


def kl_vae(tiny: bool, latent_channels: int, **more: Any) -> Any:
    """The autoencoder of both, 8 times smaller a side."""
    import diffusers

    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8) if tiny else (128, 256, 512, 512),
        layers_per_block=1 if tiny else 2,
        latent_channels=latent_channels,
        norm_num_groups=4 if tiny else 32,
        sample_size=1024,
        force_upcast=False,
        **more,
    )


def prompt_for(arch: str, device: Any, dtype: Any) -> Callable[[Sequence[int]], dict[str, Any]]:
    """Random embeddings of a prompt, the same for a seed."""
    import torch

    def noise(seeds: Sequence[int], *shape: int) -> Any:
        rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(device, dtype)

    def for_sdxl(seeds: Sequence[int]) -> dict[str, Any]:
        return {
            "prompt_embeds": noise(seeds, 77, 2048),
            "negative_prompt_embeds": noise([0] * len(seeds), 77, 2048),
            "pooled_prompt_embeds": noise(seeds, 1280),
            "negative_pooled_prompt_embeds": noise([0] * len(seeds), 1280),
        }

    def for_flux(seeds: Sequence[int]) -> dict[str, Any]:
        return {"prompt_embeds": noise(seeds, 512, 4096), "pooled_prompt_embeds": noise(seeds, 768)}

    return for_sdxl if arch == "sdxl" else for_flux


def build(arch: str, *, tiny: bool, device: Any, dtype: Any) -> Any:
    """The subject: random normal weights (zeros would multiply faster on such cards), norms near one."""
    import torch
    from image_serving import Subject

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            pipeline = {"sdxl": sdxl, "flux": flux}[arch](tiny)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator(device).manual_seed(1)
    for module in (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)):
        module.to(device, dtype).eval().requires_grad_(False)
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    return Subject(pipeline=pipeline, prompt=prompt_for(arch, device, dtype), device=torch.device(device))
