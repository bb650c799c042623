"""A stock diffusers folder with tiny random weights and a real CLIP tokenizer, for tests from a prompt to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.tiny_pipelines import kl_vae, randomized

D: Any = diffusers
_Tokenizer: Any = CLIPTokenizer
_Config: Any = CLIPTextConfig
_TextModel: Any = CLIPTextModel


def clip_tokenizer() -> Any:
    """A token a byte; 77 tokens at most."""
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return _Tokenizer(vocab=vocab, merges=[], model_max_length=77)


def stable_diffusion() -> Any:
    """A Stable Diffusion pipeline that draws 32x32 pixels by default, in multiples of 2."""
    tokenizer = clip_tokenizer()
    config = _Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = D.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    return D.StableDiffusionPipeline(
        vae=kl_vae(),
        text_encoder=randomized(_TextModel(config)),
        tokenizer=tokenizer,
        unet=randomized(unet),
        scheduler=D.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_folder(path: Path) -> Path:
    """Writes the folder."""
    stable_diffusion().save_pretrained(path)
    return path
