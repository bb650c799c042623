"""Stock diffusers pipelines with tiny random weights, and prompts as embeddings, for tests of any modality.

Weights are perturbed, so that layers which start at zero hide nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

D: Any = diffusers


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyPipeline:
    """A pipeline and how to ask it.

    Attributes:
        pipeline: Loaded.
        prompt: Keyword arguments in place of the prompt, from a seed.
        size: Width and height it draws by default in tests.
        size_step: Sizes are multiples of it.
        guidance: Name of the argument for guidance.
        in_one_call: Whether guidance makes calls of two rows.
    """

    pipeline: Any
    prompt: Callable[[int], dict[str, Any]]
    size: int = 32
    guidance: str = "guidance_scale"


def randomized(module: torch.nn.Module, std: float = 0.2, seed: int = 0) -> Any:
    """Perturbs all weights, biases and scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=generator) * std / max(1.0, parameter[0].numel() ** 0.5)
            )
    return module.eval()


def noise(seed: int, *shape: int) -> Tensor:
    """Random embeddings."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kl_vae(latent_channels: int = 4, **more: Any) -> Any:
    """The KL autoencoder of most families; 2x downscaling."""
    settings: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": latent_channels,
        "norm_num_groups": 4,
        "sample_size": 32,
    }
    return randomized(D.AutoencoderKL(**{**settings, **more}))


def sdxl() -> TinyPipeline:
    unet = D.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=16 + 6 * 8,
        cross_attention_dim=16,
        norm_num_groups=4,
    )
    pipeline = D.StableDiffusionXLPipeline(
        vae=kl_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=randomized(unet),
        scheduler=D.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
        ),
    )

    def prompt(seed: int) -> dict[str, Any]:
        return {
            "prompt_embeds": noise(seed, 1, 7, 16),
            "negative_prompt_embeds": noise(seed + 1, 1, 7, 16),
            "pooled_prompt_embeds": noise(seed + 2, 1, 16),
            "negative_pooled_prompt_embeds": noise(seed + 3, 1, 16),
        }

    return TinyPipeline(pipeline=pipeline, prompt=prompt)


def sd3() -> TinyPipeline:
    transformer = D.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=32,
    )
    pipeline = D.StableDiffusion3Pipeline(
        transformer=randomized(transformer),
        scheduler=D.FlowMatchEulerDiscreteScheduler(),
        vae=kl_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )

    def prompt(seed: int) -> dict[str, Any]:
        return {
            "prompt_embeds": noise(seed, 1, 7, 32),
            "negative_prompt_embeds": noise(seed + 1, 1, 7, 32),
            "pooled_prompt_embeds": noise(seed + 2, 1, 64),
            "negative_pooled_prompt_embeds": noise(seed + 3, 1, 64),
        }

    return TinyPipeline(pipeline=pipeline, prompt=prompt)


def flux(num_layers: int = 2) -> TinyPipeline:
    transformer = D.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=num_layers,
        num_single_layers=num_layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    pipeline = D.FluxPipeline(
        transformer=randomized(transformer),
        scheduler=D.FlowMatchEulerDiscreteScheduler(),
        vae=kl_vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )

    def prompt(seed: int) -> dict[str, Any]:
        return {"prompt_embeds": noise(seed, 1, 9, 32), "pooled_prompt_embeds": noise(seed + 2, 1, 32)}

    return TinyPipeline(pipeline=pipeline, prompt=prompt)


FAMILIES: dict[str, Callable[[], TinyPipeline]] = {"sdxl": sdxl, "sd3": sd3, "flux": flux}
