"""The video model: an LTX-Video pipeline of stock classes, small enough to keep in a repository."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from examples.train_tiny.tokenizers import build_t5_tokenizer

LATENT_CHANNELS = 16
LATENT_SHAPE = (5, 8, 8)
PIXELS_PER_LATENT = 8
TEXT_WIDTH = 128
WIDTH, HEADS, LAYERS = 192, 6, 6
# The pipeline pads prompts to 128 tokens and masks the padding; the denoiser is trained on the first 24 only, which is equal.
TEXT_TOKENS_KEPT = 24
# The pipeline's rotary positions count seconds, so the model must know the usual frame rates.
FRAME_RATES = (8, 12, 16, 24, 25, 30)
SCHEDULER_SHIFT = 4.0
TRAINING_SHIFT = 3.0


def build_vae() -> AutoencoderKLLTXVideo:
    """Returns an untrained autoencoder: 17 frames of 64x64 become 5 latent frames of 8x8 with 16 channels.

    With 16 pixels a side in a latent instead of 8 it kept the shape of one clip in three.
    """
    widths = (32, 32, 48)
    return AutoencoderKLLTXVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=widths,
        down_block_types=("LTXVideoDownBlock3D",) * 3,
        decoder_block_out_channels=widths,
        layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False),
        decoder_spatio_temporal_scaling=(True, True, False),
        decoder_inject_noise=(False, False, False, False),
        downsample_type=("conv",) * 3,
        upsample_residual=(False,) * 3,
        upsample_factor=(1, 1, 1),
        patch_size=2,
        encoder_causal=True,
        decoder_causal=False,
    )


def build_text_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Returns an untrained T5 encoder of two layers, whose heads look at different neighbours from the start.

    With T5's own initial values all heads look everywhere alike, and nothing tells the colour of the shape from that of the
    ground: a run of 17,000 steps never left that state.
    """
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    encoder = T5EncoderModel(config)
    blocks: Any = encoder.encoder.block
    nn.init.normal_(blocks[0].layer[0].SelfAttention.relative_attention_bias.weight)
    return encoder


def build_transformer() -> LTXVideoTransformer3DModel:
    """Returns an untrained denoiser over 320 latent tokens, with cross attention to the text."""
    return LTXVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        cross_attention_dim=WIDTH,
        num_layers=LAYERS,
        caption_channels=TEXT_WIDTH,
    )


def build_pipeline(vae: AutoencoderKLLTXVideo) -> LTXPipeline:
    """Assembles the stock pipeline around a trained autoencoder."""
    tokenizer = build_t5_tokenizer()
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SCHEDULER_SHIFT),
        vae=vae,
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=build_transformer(),
    )


class VideoDenoiser(nn.Module):
    """The trained parts of the pipeline, called as the pipeline calls them."""

    def __init__(self, pipeline: LTXPipeline) -> None:
        super().__init__()
        self.transformer: LTXVideoTransformer3DModel = pipeline.transformer
        self.text_encoder: T5EncoderModel = pipeline.text_encoder
        self.pad_token_id: int = pipeline.tokenizer.pad_token_id

    def forward(self, noisy: Tensor, sigma: Tensor, token_ids: Tensor, frame_rate: Tensor) -> Tensor:
        """Predicts noise minus clip.

        Args:
            noisy: Latent tokens [batch, 320, 16].
            sigma: Noise levels in 0 to 1: [batch, 320], 0 for a first frame that is given.
            token_ids: [batch, 128].
            frame_rate: Frames per second that the clips are meant to be shown at, [1].
        """
        text = self.text_encoder(token_ids)[0][:, :TEXT_TOKENS_KEPT]
        num_frames, height, width = LATENT_SHAPE
        return self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=text,
            timestep=sigma * 1000,
            encoder_attention_mask=token_ids[:, :TEXT_TOKENS_KEPT] != self.pad_token_id,
            num_frames=num_frames,
            height=height,
            width=width,
            rope_interpolation_scale=(4 / frame_rate, PIXELS_PER_LATENT, PIXELS_PER_LATENT),
            return_dict=False,
        )[0]


def pack(latents: Tensor) -> Tensor:
    """Turns latents [batch, 16, 5, 8, 8] into the tokens of the denoiser [batch, 320, 16]."""
    return latents.flatten(2).transpose(1, 2)


def normalize(latents: Tensor, vae: AutoencoderKLLTXVideo) -> Tensor:
    """Brings latents [batch, 16, ...] to mean 0 and deviation 1 with the statistics that the autoencoder keeps."""
    mean, std = (buffer.view(1, -1, 1, 1, 1) for buffer in (vae.latents_mean, vae.latents_std))
    return (latents - mean) / std


def set_statistics(vae: AutoencoderKLLTXVideo, latents: Tensor) -> None:
    """Stores the mean and deviation of each channel of latents [batch, 48, frames, height, width]."""
    channels = latents.float().transpose(0, 1).flatten(1)
    with torch.no_grad():
        vae.latents_mean.copy_(channels.mean(1))
        vae.latents_std.copy_(channels.std(1))
