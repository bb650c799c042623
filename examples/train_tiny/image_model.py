"""The image model: a Stable Diffusion 3 pipeline of stock classes, small enough to keep in a repository."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from examples.train_tiny.tokenizers import CLIP_TOKENS, build_clip_tokenizer, build_t5_tokenizer

LATENT_CHANNELS = 8
TEXT_WIDTH = 96
WIDTH, HEADS, LAYERS = 128, 4, 7
# The stock pipeline pads the T5 text to its max_sequence_length of 256 and masks nothing. A T5 encoder of no layers gives
# all padding the same embedding, so training keeps 24 tokens for words and 8 of padding that stand for the other 232.
T5_WORD_TOKENS = 24
T5_PAD_TOKENS = 8
T5_PADS_EACH = (256 - T5_WORD_TOKENS) // T5_PAD_TOKENS
SCHEDULER_SHIFT = 2.0


def build_vae() -> AutoencoderKL:
    """Returns an untrained autoencoder: 64x64 pixels become 16x16 latents of 8 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        force_upcast=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Returns an untrained CLIP text tower; its last layer feeds only the pooled embedding."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=3,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def build_word_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Returns an untrained T5 encoder of no layers: a table of words. The stock pipeline does not load without a T5."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=2 * TEXT_WIDTH,
        d_kv=32,
        d_ff=64,
        num_layers=0,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)


def build_transformer() -> SD3Transformer2DModel:
    """Returns an untrained denoiser: 64 image tokens and the text tokens attend to each other."""
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )


def build_pipeline(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """Assembles the stock pipeline around a trained autoencoder."""
    tokenizer, word_tokenizer = build_clip_tokenizer(), build_t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=build_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SCHEDULER_SHIFT),
        vae=vae,
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=build_text_encoder(tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=build_word_encoder(word_tokenizer),
        tokenizer_3=word_tokenizer,
    )


def tokenize(pipeline: StableDiffusion3Pipeline, prompts: list[str]) -> Tensor:
    """Returns the CLIP tokens and the T5 tokens of prompts side by side, [prompts, 32 + 32]."""
    clip = pipeline.tokenizer(prompts, padding="max_length", max_length=CLIP_TOKENS, return_tensors="pt").input_ids
    t5_tokens = T5_WORD_TOKENS + T5_PAD_TOKENS
    words = pipeline.tokenizer_3(prompts, padding="max_length", max_length=t5_tokens, return_tensors="pt").input_ids
    assert bool((words[:, T5_WORD_TOKENS:] == pipeline.tokenizer_3.pad_token_id).all()), (
        "a prompt outgrew T5_WORD_TOKENS"
    )
    return torch.cat([clip, words], dim=1)


class ImageDenoiser(nn.Module):
    """The trained parts of the pipeline, called as the pipeline calls them, but with its 232 paddings of T5 as 8.

    Equal tokens stay equal through every layer, since text tokens carry no position. So 8 of them, each counting for 29 in the
    attention's sum, give what 232 give at a third of the cost. tests/examples/test_tiny_training.py compares the two.
    """

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        super().__init__()
        self.transformer: SD3Transformer2DModel = pipeline.transformer
        self.text_encoder: CLIPTextModelWithProjection = pipeline.text_encoder
        self.text_encoder_2: CLIPTextModelWithProjection = pipeline.text_encoder_2
        self.text_encoder_3: T5EncoderModel = pipeline.text_encoder_3

    def forward(self, noisy: Tensor, sigma: Tensor, token_ids: Tensor) -> Tensor:
        """Predicts noise minus picture for latents [batch, 8, 16, 16] at noise levels [batch] in 0 to 1."""
        clip_ids, word_ids = token_ids.split([CLIP_TOKENS, T5_WORD_TOKENS + T5_PAD_TOKENS], dim=1)
        texts = [encoder(clip_ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        context = torch.cat([text.hidden_states[-2] for text in texts], dim=-1)
        return self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=torch.cat([context, self.text_encoder_3(word_ids)[0]], dim=1),
            pooled_projections=torch.cat([text.text_embeds for text in texts], dim=-1),
            timestep=sigma * 1000,
            return_dict=False,
        )[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedPadding:
    """Stock joint attention in which the last tokens of the text each count several times.

    Args:
        num_counted: How many tokens at the end of the text.
        times: How often each of them counts.
    """

    num_counted: int
    times: int

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attends as diffusers' JointAttnProcessor2_0 does; returns the image tokens and the text tokens."""

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        text = encoder_hidden_states
        query = torch.cat(
            [attn.norm_q(heads(attn.to_q(hidden_states))), attn.norm_added_q(heads(attn.add_q_proj(text)))], 2
        )
        key = torch.cat(
            [attn.norm_k(heads(attn.to_k(hidden_states))), attn.norm_added_k(heads(attn.add_k_proj(text)))], 2
        )
        value = torch.cat([heads(attn.to_v(hidden_states)), heads(attn.add_v_proj(text))], 2)
        bias = query.new_zeros(query.shape[2], key.shape[2])
        bias[:, -self.num_counted :].fill_(math.log(self.times))
        mixed = F.scaled_dot_product_attention(query, key, value.to(query.dtype), attn_mask=bias)
        mixed = mixed.transpose(1, 2).flatten(2)
        image, text = mixed.split([hidden_states.shape[1], text.shape[1]], dim=1)
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)
