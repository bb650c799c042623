"""The pipelines that the GPU bench draws with: real sizes, random weights; without text encoders unless they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def sdxl(tiny: bool, *, reads: bool = False) -> Any:
    """Stable Diffusion XL's UNet and autoencoder.

    Args:
        tiny: For a trial on a CPU.
        reads: With its two text encoders, and tokenizers of a token a byte.
    """
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
    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return diffusers.StableDiffusionXLPipeline(
        vae=kl_vae(tiny, 4, scaling_factor=0.13025),
        unet=unet,
        scheduler=scheduler,
        **(clip_readers(tiny) if reads else nothing),
    )


def clip_readers(tiny: bool) -> dict[str, Any]:
    """CLIP ViT-L's and OpenCLIP ViT-bigG's text towers, as SDXL has them."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    make: Any = transformers.CLIPTokenizer
    tokenizer = make(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], model_max_length=77)

    def config(hidden: int, layers: int, heads: int) -> Any:
        return transformers.CLIPTextConfig(
            vocab_size=len(tokenizer) if tiny else 49_408,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            projection_dim=hidden,
            num_hidden_layers=2 if tiny else layers,
            num_attention_heads=heads,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    return {
        "text_encoder": transformers.CLIPTextModel(config(768, 12, 12)),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(config(1280, 32, 20)),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
    }


def flux(tiny: bool, *, reads: bool = False) -> Any:
    """Flux.1-dev's transformer and autoencoder."""
    import diffusers

    assert not reads, "without T5"

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


def texts(seeds: Sequence[int]) -> dict[str, Any]:
    """A prompt for each seed, which fills half of the tokens, and one of what is not wanted."""
    prompts = [f"a lighthouse in a storm at sea, no {seed}" for seed in seeds]
    return {"prompt": prompts, "negative_prompt": ["blurred"] * len(prompts)}


def build(arch: str, *, tiny: bool, device: Any, dtype: Any, reads: bool = False) -> Any:
    """The subject: random normal weights (zeros would multiply faster on such cards), norms near one.

    Args:
        arch: "sdxl" or "flux".
        tiny: For a trial on a CPU.
        device: Where it is made.
        dtype: Of its weights.
        reads: Prompts are texts that it encodes itself, not random embeddings.
    """
    import torch
    from image_serving import Subject

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            pipeline = {"sdxl": sdxl, "flux": flux}[arch](tiny, reads=reads)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator(device).manual_seed(1)
    for module in (part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)):
        module.to(device, dtype).eval().requires_grad_(False)
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    prompt = texts if reads else prompt_for(arch, device, dtype)
    return Subject(pipeline=pipeline, prompt=prompt, device=torch.device(device))
