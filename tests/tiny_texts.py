"""Tiny pipelines of every family with tokenizers and text encoders, as a saved folder has them: from a prompt to a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers

from tests.plugins.video.tiny_pipelines import tokenizer
from tests.tiny_image_folder import clip_tokenizer
from tests.tiny_pipelines import FAMILIES, randomized

T: Any = transformers
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _clip(width: int, projection: int | None = None) -> Any:
    kind = T.CLIPTextModel if projection is None else T.CLIPTextModelWithProjection
    its = clip_tokenizer()
    config = T.CLIPTextConfig(
        vocab_size=len(its),
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=projection or 16,
        max_position_embeddings=77,
        bos_token_id=its.bos_token_id,
        eos_token_id=its.eos_token_id,
        pad_token_id=its.pad_token_id,
    )
    return randomized(kind(config))


def _t5() -> Any:
    config = T.T5Config(
        d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, vocab_size=400, relative_attention_num_buckets=8
    )
    return randomized(T.T5EncoderModel(config))


def _decoder(kind: str, width: int, num_layers: int = 3) -> Any:
    """The configuration of a language model whose hidden states are read: Gemma 2 or Qwen 3."""
    return getattr(T, f"{kind}Config")(
        vocab_size=400,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )


def _gemma() -> Any:
    return randomized(T.Gemma2Model(_decoder("Gemma2", 8)))


def _qwen3(width: int = 16, num_layers: int = 3) -> Any:
    return randomized(T.Qwen3ForCausalLM(_decoder("Qwen3", width, num_layers)))


def _qwen25_vl() -> Any:
    config = T.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 400,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0},
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        },
    )
    return randomized(T.Qwen2_5_VLForConditionalGeneration(config))


def _chat_tokenizer() -> Any:
    its = tokenizer(1024)
    its.chat_template = _CHAT
    return its


_PARTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "sdxl": lambda: {
        "tokenizer": clip_tokenizer(),
        "text_encoder": _clip(8),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_2": _clip(8, 16),
    },
    "sd3": lambda: {
        "tokenizer": clip_tokenizer(),
        "text_encoder": _clip(16, 32),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_2": _clip(16, 32),
        "tokenizer_3": tokenizer(256),
        "text_encoder_3": _t5(),
    },
    "flux": lambda: {
        "tokenizer": clip_tokenizer(),
        "text_encoder": _clip(32),
        "tokenizer_2": tokenizer(512),
        "text_encoder_2": _t5(),
    },
    "flux2": lambda: {"tokenizer": _chat_tokenizer(), "text_encoder": _qwen3(16, 28)},
    "qwen_image": lambda: {"tokenizer": _chat_tokenizer(), "text_encoder": _qwen25_vl()},
    "z_image": lambda: {"tokenizer": _chat_tokenizer(), "text_encoder": _qwen3()},
    "chroma": lambda: {"tokenizer": tokenizer(512), "text_encoder": _t5()},
    "pixart": lambda: {"tokenizer": tokenizer(300), "text_encoder": _t5()},
    "sana": lambda: {"tokenizer": tokenizer(1024), "text_encoder": _gemma()},
    "lumina2": lambda: {"tokenizer": tokenizer(1024), "text_encoder": _gemma()},
}


_SAMPLE_SIZES = {"pixart": 32, "sana": 16}
"""By these they know the sizes that they draw: about 256 and 512 pixels."""


def with_texts(family: str) -> Any:
    """The stock pipeline of a family, which reads prompts."""
    pipeline = FAMILIES[family]().pipeline
    if family in _SAMPLE_SIZES:
        pipeline.transformer.register_to_config(sample_size=_SAMPLE_SIZES[family])
    return type(pipeline)(**{**pipeline.components, **_PARTS[family]()})
