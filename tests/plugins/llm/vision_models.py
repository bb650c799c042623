"""Tiny models with random weights that read images, their processors, and the stock way to ask them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from sixfold.plugins.llm.generation import ChatInput, ChatMessage, ImageDetail, ImagePart, SamplingParams
from sixfold.plugins.llm.image_processor import ImageProcessor
from sixfold.plugins.llm.text_codec import TextCodec
from tests.plugins.llm.conftest import EOS_ID, byte_tokenizer

IMAGE_TOKEN = "<image>"
VOCAB_SIZE = 300
_GRID = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
_SPECIAL = [IMAGE_TOKEN, "<fake_token_around_image>", "<global-img>", *_GRID]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.5,  # far apart logits: greedy choices are no toss-ups
    "bos_token_id": 256,
    "eos_token_id": EOS_ID,
    "pad_token_id": EOS_ID,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,  # features of size: another image is another answer
}
_PINPOINTS = [[32, 32], [32, 64], [64, 32], [64, 64]]

# Typed in part.
_T: Any = transformers
_MODELS: Any = transformers.AutoModelForImageTextToText


def _smolvlm(image_token_id: int) -> Any:
    text = transformers.LlamaConfig(**_TEXT).to_dict()
    return _T.SmolVLMConfig(text_config=text, vision_config=_VISION, image_token_id=image_token_id, scale_factor=2)


def _idefics3(image_token_id: int) -> Any:
    text = transformers.LlamaConfig(**_TEXT).to_dict()
    return _T.Idefics3Config(text_config=text, vision_config=_VISION, image_token_id=image_token_id, scale_factor=2)


def _llava(image_token_id: int) -> Any:
    vision = transformers.CLIPVisionConfig(**_VISION, projection_dim=16)
    return _T.LlavaConfig(
        text_config=transformers.LlamaConfig(**_TEXT), vision_config=vision, image_token_index=image_token_id
    )


def _llava_onevision(image_token_id: int) -> Any:
    return _T.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**_TEXT),
        vision_config=transformers.SiglipVisionConfig(**_VISION),
        image_token_index=image_token_id,
        image_grid_pinpoints=_PINPOINTS,
    )


def _qwen2_vl(image_token_id: int) -> Any:
    text = _TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 4, "patch_size": 8, "initializer_range": 0.3}
    return _T.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=image_token_id)


def _qwen2_5_vl(image_token_id: int) -> Any:
    text = _TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 48,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 8,
        "window_size": 32,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.3,
    }
    return _T.Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=image_token_id)


_SPLITS: Any = SmolVLMImageProcessorPil
_CROPS: Any = CLIPImageProcessorPil
_ANYRES: Any = LlavaOnevisionImageProcessorPil
_PATCHES: Any = Qwen2VLImageProcessorPil

MODELS: dict[str, tuple[Callable[[int], Any], Callable[[], Any], dict[str, Any]]] = {
    "smolvlm": (
        _smolvlm,
        lambda: _SPLITS(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    ),
    "idefics3": (
        _idefics3,
        lambda: _SPLITS(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        {"processor_class": "Idefics3Processor", "image_seq_len": 4},
    ),
    "llava": (
        _llava,
        lambda: _CROPS(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        {
            "processor_class": "LlavaProcessor",
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    ),
    "llava-onevision": (
        _llava_onevision,
        lambda: _ANYRES(size={"height": 32, "width": 32}, image_grid_pinpoints=_PINPOINTS),
        {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 16,
            "vision_feature_select_strategy": "full",
        },
    ),
    "qwen2-vl": (
        _qwen2_vl,
        lambda: _PATCHES(patch_size=8, min_pixels=32 * 32, max_pixels=64 * 64),
        {"processor_class": "Qwen2VLProcessor"},
    ),
    "qwen2.5-vl": (
        _qwen2_5_vl,
        lambda: _PATCHES(patch_size=8, min_pixels=32 * 32, max_pixels=64 * 64),
        {"processor_class": "Qwen2_5_VLProcessor"},
    ),
}
"""Config, image processor and ``processor_config.json`` of each."""


def write_vision_model(folder: Path, name: str) -> Path:
    """Saves a random model of one of `MODELS`, the same in every run."""
    make_config, make_processor, settings = MODELS[name]
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": _SPECIAL})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    # Qwen2-VL's processor would look for a token of another name.
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"extra_special_tokens": {"image_token": IMAGE_TOKEN}})
    )
    transformers.set_seed(7)
    model = _MODELS.from_config(make_config(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)))
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return folder


def picture(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    """Coloured noise, coarse enough to survive scaling."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (6, 9, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def part(image: Image.Image, detail: ImageDetail = "auto") -> ImagePart:
    """As a client sends it, without loss."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return ImagePart(data=stream.getvalue(), detail=detail, param="messages.0.content.1.image_url.url")


def turn(*parts: str | ImagePart) -> ChatMessage:
    """What the user says and shows."""
    text = "".join(each for each in parts if isinstance(each, str))
    return ChatMessage(role="user", content=text, parts=parts)


def look(*parts: str | ImagePart, num_tokens: int = 8, num_choices: int = 1, salt: str | None = None) -> ChatInput:
    """One turn, answered greedily by just so many tokens."""
    # min_tokens as in the reference: the end token is never chosen. logprobs name the tokens.
    params = SamplingParams(temperature=0, max_tokens=num_tokens, min_tokens=num_tokens, num_top_logprobs=0)
    return ChatInput(messages=(turn(*parts),), params=params, num_choices=num_choices, cache_salt=salt)


def generate(folder: Path, text: str, images: Sequence[Image.Image], num_tokens: int) -> list[int]:
    """What transformers' own processor and ``generate`` give for a rendered conversation."""
    model = _MODELS.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = ImageProcessor.load(folder, torch.float32).stock if images else TextCodec.load(folder)
    if images:
        inputs = processor(text=text, images=list(images), return_tensors="pt", add_special_tokens=False)
    else:
        inputs = {"input_ids": torch.tensor([processor.encode(text, add_special_tokens=False)])}
    output = model.generate(
        **inputs, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=EOS_ID
    )
    return [int(token) for token in output[0, inputs["input_ids"].shape[1] :]]


def rendered(*parts: str | Image.Image) -> str:
    """The prompt's text, as the template writes it."""
    content = "".join(each if isinstance(each, str) else IMAGE_TOKEN for each in parts)
    return f"<s>user\n{content}</s>\n<s>assistant\n"
