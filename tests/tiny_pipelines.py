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
        guidance: Name of the argument for guidance.
    """

    pipeline: Any
    prompt: Callable[[int], dict[str, Any]]
    size: int = 32
    guidance: str = "guidance_scale"


def randomized(module: torch.nn.Module, scale: float = 1.0, seed: int = 0) -> Any:
    """Draws all weights anew, so that each build of a module is the same; nothing stays at zero, norms are near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(drawn * scale / max(1.0, parameter[0].numel()) ** 0.5)
            else:
                parameter.copy_(drawn * 0.1 + (1.0 if name.endswith("weight") else 0.0))
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


def qwen_image() -> TinyPipeline:
    transformer = D.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    vae = D.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 1.2, 0.9, 1.1],
    )
    pipeline = D.QwenImagePipeline(
        transformer=randomized(transformer),
        scheduler=D.FlowMatchEulerDiscreteScheduler(),
        vae=randomized(vae),
        text_encoder=None,
        tokenizer=None,
    )

    def prompt(seed: int) -> dict[str, Any]:
        length = 5 + seed % 7  # texts differ in length: padding and a mask let them merge
        return {
            "prompt_embeds": noise(seed, 1, length, 16),
            "prompt_embeds_mask": torch.ones(1, length, dtype=torch.int64),
            "negative_prompt_embeds": noise(seed + 1, 1, 4, 16),
            "negative_prompt_embeds_mask": torch.ones(1, 4, dtype=torch.int64),
        }

    return TinyPipeline(pipeline=pipeline, prompt=prompt, guidance="true_cfg_scale")


def z_image() -> TinyPipeline:
    transformer = D.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        qk_norm=True,
        cap_feat_dim=16,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    # Padding tokens have parameters of their own that start as garbage.
    randomized(transformer)
    with torch.no_grad():
        transformer.x_pad_token.copy_(noise(3, *transformer.x_pad_token.shape))
        transformer.cap_pad_token.copy_(noise(4, *transformer.cap_pad_token.shape))
    pipeline = D.ZImagePipeline(
        transformer=transformer,
        scheduler=D.FlowMatchEulerDiscreteScheduler(),
        vae=kl_vae(16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=1.5),
        text_encoder=None,
        tokenizer=None,
    )

    def prompt(seed: int) -> dict[str, Any]:
        return {
            "prompt_embeds": [noise(seed, 5 + seed % 7, 16)],
            "negative_prompt_embeds": [noise(seed + 1, 4, 16)],
        }

    return TinyPipeline(pipeline=pipeline, prompt=prompt)


def chroma() -> TinyPipeline:
    transformer = D.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    pipeline = D.ChromaPipeline(
        transformer=randomized(transformer),
        scheduler=D.FlowMatchEulerDiscreteScheduler(),
        vae=kl_vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035),
        text_encoder=None,
        tokenizer=None,
    )

    def prompt(seed: int) -> dict[str, Any]:
        return {
            "prompt_embeds": noise(seed, 1, 9, 32),
            "prompt_attention_mask": torch.ones(1, 9),
            "negative_prompt_embeds": noise(seed + 1, 1, 9, 32),
            "negative_prompt_attention_mask": torch.ones(1, 9),
        }

    return TinyPipeline(pipeline=pipeline, prompt=prompt)


def pixart() -> TinyPipeline:
    transformer = D.PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    pipeline = D.PixArtSigmaPipeline(
        transformer=randomized(transformer, scale=0.5),
        scheduler=D.DDIMScheduler(),
        vae=kl_vae(),
        text_encoder=None,
        tokenizer=None,
    )

    def prompt(seed: int) -> dict[str, Any]:
        return {
            "prompt": None,
            "negative_prompt": None,
            "prompt_embeds": noise(seed, 1, 8, 32),
            "prompt_attention_mask": torch.ones(1, 8),
            "negative_prompt_embeds": noise(seed + 1, 1, 8, 32),
            "negative_prompt_attention_mask": torch.ones(1, 8),
            "use_resolution_binning": False,
        }

    return TinyPipeline(pipeline=pipeline, prompt=prompt)


def sana() -> TinyPipeline:
    transformer = D.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=32,
    )
    vae = D.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1],
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    pipeline = D.SanaPipeline(
        transformer=randomized(transformer),
        scheduler=D.FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=randomized(vae),
        text_encoder=None,
        tokenizer=None,
    )

    def prompt(seed: int) -> dict[str, Any]:
        return {
            "prompt": None,
            "negative_prompt": None,
            "prompt_embeds": noise(seed, 1, 8, 8),
            "prompt_attention_mask": torch.ones(1, 8),
            "negative_prompt_embeds": noise(seed + 1, 1, 8, 8),
            "negative_prompt_attention_mask": torch.ones(1, 8),
            "use_resolution_binning": False,
        }

    return TinyPipeline(pipeline=pipeline, prompt=prompt, size=64)


def lumina2() -> TinyPipeline:
    transformer = D.Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=[4, 2, 2],
        cap_feat_dim=8,
    )
    pipeline = D.Lumina2Pipeline(
        transformer=randomized(transformer, scale=0.5),
        scheduler=D.FlowMatchEulerDiscreteScheduler(),
        vae=kl_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035),
        text_encoder=None,
        tokenizer=None,
    )

    def prompt(seed: int) -> dict[str, Any]:
        return {
            "prompt_embeds": noise(seed, 1, 8, 8),
            "prompt_attention_mask": torch.ones(1, 8, dtype=torch.bool),
            "negative_prompt_embeds": noise(seed + 1, 1, 8, 8),
            "negative_prompt_attention_mask": torch.ones(1, 8, dtype=torch.bool),
        }

    return TinyPipeline(pipeline=pipeline, prompt=prompt, size=64)


def flux2() -> TinyPipeline:
    """FLUX.2 klein: draws from a prompt, or after any number of images."""
    transformer = D.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = D.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    )
    randomized(vae)
    vae.bn.running_mean.copy_(noise(5, 16) * 0.1)
    vae.bn.running_var.copy_(noise(6, 16).abs() + 0.5)
    pipeline = D.Flux2KleinPipeline(
        transformer=randomized(transformer),
        scheduler=D.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
    )

    def prompt(seed: int) -> dict[str, Any]:
        return {"prompt_embeds": noise(seed, 1, 9, 48), "negative_prompt_embeds": noise(seed + 1, 1, 9, 48)}

    return TinyPipeline(pipeline=pipeline, prompt=prompt)


FAMILIES: dict[str, Callable[[], TinyPipeline]] = {
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "flux2": flux2,
    "qwen_image": qwen_image,
    "z_image": z_image,
    "chroma": chroma,
    "pixart": pixart,
    "sana": sana,
    "lumina2": lumina2,
}
