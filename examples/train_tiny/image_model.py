"""The image model: a Stable Diffusion 3 pipeline of stock classes, small enough to keep in a repository."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from examples.train_tiny.tokenizers import CLIP_TOKENS, build_clip_tokenizer

LATENT_CHANNELS = 8
TEXT_WIDTH = 96
WIDTH, HEADS, LAYERS = 128, 4, 7
# The stock pipeline, lacking its T5 encoder, appends this many zero tokens to every prompt (its max_sequence_length).
ZERO_TOKENS = 256
ZERO_TOKENS_KEPT = 8
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
    """Assembles the stock pipeline around a trained autoencoder; the third text encoder is left out."""
    tokenizer = build_clip_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=build_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SCHEDULER_SHIFT),
        vae=vae,
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=build_text_encoder(tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


class ImageDenoiser(nn.Module):
    """The trained parts of the pipeline, called as the pipeline calls them, but with its 256 zero tokens as 8.

    Equal tokens stay equal through every layer, since text tokens carry no position. So 8 of them, each counting for 32 in the
    attention's sum, give what 256 give at a third of the cost. tests/examples/test_tiny_models.py compares the two.
    """

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        super().__init__()
        self.transformer: SD3Transformer2DModel = pipeline.transformer
        self.text_encoder: CLIPTextModelWithProjection = pipeline.text_encoder
        self.text_encoder_2: CLIPTextModelWithProjection = pipeline.text_encoder_2

    def forward(self, noisy: Tensor, sigma: Tensor, token_ids: Tensor) -> Tensor:
        """Predicts noise minus picture for latents [batch, 8, 16, 16] at noise levels [batch] in 0 to 1."""
        texts = [encoder(token_ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        context = torch.cat([text.hidden_states[-2] for text in texts], dim=-1)
        context = F.pad(context, (0, 0, 0, ZERO_TOKENS_KEPT))
        pooled = torch.cat([text.text_embeds for text in texts], dim=-1)
        return self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            timestep=sigma * 1000,
            return_dict=False,
        )[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedZeros:
    """Stock joint attention in which the last tokens of the text each count several times.

    Args:
        num_counted: How many tokens at the end of the text.
        times: How often each of them counts.
    """

    num_counted: int
    times: int

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attends as diffusers' JointAttnProcessor2_0 does; returns the image tokens and the text tokens."""

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        text = encoder_hidden_states
        query = torch.cat(
            [attn.norm_q(heads(attn.to_q(hidden_states))), attn.norm_added_q(heads(attn.add_q_proj(text)))], 2
        )
        key = torch.cat([attn.norm_k(heads(attn.to_k(hidden_states))), attn.norm_added_k(heads(attn.add_k_proj(text)))], 2)
        value = torch.cat([heads(attn.to_v(hidden_states)), heads(attn.add_v_proj(text))], 2)
        bias = query.new_zeros(query.shape[2], key.shape[2])
        bias[:, -self.num_counted :] = torch.tensor(float(self.times)).log()
        mixed = F.scaled_dot_product_attention(query, key, value.to(query.dtype), attn_mask=bias)
        mixed = mixed.transpose(1, 2).flatten(2)
        image, text = mixed.split([hidden_states.shape[1], text.shape[1]], dim=1)
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)
