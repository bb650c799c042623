"""Pipeline folders of the real families with random weights: small enough for a test, with every component in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_D: Any = diffusers
_T: Any = transformers

_WORDS = [
    "a small red ball moves right above the large blue square on a green background",
    "two yellow circles moving left and down, a black triangle",
    "Describe the video by detailing the following aspects: 1. The main content and theme of the video.",
]


def tokenizer(max_length: int = 64) -> Any:
    """A byte-level tokenizer; every text has ids below 400."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(_WORDS, trainer)
    return _T.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="</s>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def _t5(cls: Any, config: Any) -> Any:
    return cls(
        config(
            d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, vocab_size=1000, relative_attention_num_buckets=8
        )
    )


def wan() -> Any:
    return _D.WanPipeline(
        vae=_wan_vae(),
        transformer=_wan_transformer(in_channels=16),
        scheduler=_D.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
        text_encoder=_t5(_T.UMT5EncoderModel, _T.UMT5Config),
        tokenizer=tokenizer(),
    )


def wan_image() -> Any:
    """Image-to-video as in Wan 2.2: the first frame goes into the latents' extra channels, no image encoder."""
    return _D.WanImageToVideoPipeline(
        vae=_wan_vae(),
        transformer=_wan_transformer(in_channels=36),
        scheduler=_D.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=_t5(_T.UMT5EncoderModel, _T.UMT5Config),
        tokenizer=tokenizer(),
        image_processor=None,
        image_encoder=None,
    )


def _wan_vae() -> Any:
    return _D.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def _wan_transformer(*, in_channels: int) -> Any:
    return _D.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def ltx() -> Any:
    return _D.LTXPipeline(
        vae=_D.AutoencoderKLLTXVideo(
            in_channels=3,
            out_channels=3,
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            timestep_conditioning=False,
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        ),
        transformer=_D.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            patch_size=1,
            patch_size_t=1,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=32,
        ),
        scheduler=_D.FlowMatchEulerDiscreteScheduler(),
        text_encoder=_t5(_T.T5EncoderModel, _T.T5Config),
        tokenizer=tokenizer(),
    )


def hunyuan() -> Any:
    llama = _T.LlamaConfig(
        hidden_size=16,
        intermediate_size=37,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        vocab_size=1000,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    clip = _T.CLIPTextConfig(
        hidden_size=8,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        vocab_size=1000,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        projection_dim=32,
    )
    return _D.HunyuanVideoPipeline(
        vae=_D.AutoencoderKLHunyuanVideo(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            act_fn="silu",
            norm_num_groups=4,
            scaling_factor=0.476986,
            spatial_compression_ratio=8,
            temporal_compression_ratio=4,
            mid_block_add_attention=True,
        ),
        transformer=_D.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=16,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        ),
        scheduler=_D.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=_T.LlamaModel(llama),
        tokenizer=tokenizer(512),
        text_encoder_2=_T.CLIPTextModel(clip),
        tokenizer_2=tokenizer(77),
    )


def cogvideox() -> Any:
    return _D.CogVideoXPipeline(
        vae=_D.AutoencoderKLCogVideoX(
            in_channels=3,
            out_channels=3,
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        ),
        transformer=_D.CogVideoXTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=32,
            num_layers=2,
            sample_width=4,
            sample_height=4,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=226,
        ),
        scheduler=_D.CogVideoXDDIMScheduler(),
        text_encoder=_t5(_T.T5EncoderModel, _T.T5Config),
        tokenizer=tokenizer(),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "wan": wan,
    "ltx": ltx,
    "hunyuan": hunyuan,
    "cogvideox": cogvideox,
    "wan_image": wan_image,
}


def build(name: str, *, seed: int = 0) -> Any:
    """The pipeline with perturbed random weights, in eval mode: zero-initialised outputs would hide any mistake."""
    torch.random.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]  # torch leaves its seed untyped
    pipeline = FAMILIES[name]()
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
            with torch.no_grad():
                for parameter in component.parameters():
                    parameter.add_(torch.randn(parameter.shape) * 0.05)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(name: str, folder: Path) -> Path:
    """Writes the pipeline's folder; returns it."""
    build(name).save_pretrained(str(folder))
    return folder
