"""Tiny text-and-image folders with random weights, pictures, and a driver that takes a request through a model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from sixfold.core.batching.model import Granted
from sixfold.core.family import LoadContext
from sixfold.core.messages import Request
from sixfold.plugins.embedding.clip.loader import load
from sixfold.plugins.embedding.clip.model import ClipModel
from sixfold.plugins.embedding.clip.options import ClipOptions
from sixfold.plugins.embedding.schema import EmbeddingInput

WORDS = [f"w{n}" for n in range(90)]
SPECIAL = ["<s>", "<pad>", "<unk>", "</s>"]
MAX_TOKENS = 16
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_IDS: dict[str, Any] = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 3, "vocab_size": 94}
TEXT = {**_TOWER, **_IDS, "max_position_embeddings": MAX_TOKENS}
VISION = {**_TOWER, "image_size": 24, "patch_size": 8}
SIZE = {"height": 24, "width": 24}


def _tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 3)])
    backend: Any = PreTrainedTokenizerFast
    return backend(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )


def save_dual_encoder(folder: Path, kind: str = "clip") -> Path:
    """A transformers folder of a model and its processor."""
    torch.default_generator.manual_seed(7)
    network: Any
    clip_processor: Any = CLIPProcessor
    siglip_processor: Any = SiglipProcessor
    if kind == "clip":
        network = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=20))
        images = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=SIZE)
        processor = clip_processor(image_processor=images, tokenizer=_tokenizer())
    else:
        network = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))
        processor = siglip_processor(image_processor=SiglipImageProcessor(size=SIZE), tokenizer=_tokenizer())
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def load_dual_encoder(path: Path, **options: Any) -> ClipModel:
    """As the worker loads it."""
    return load(LoadContext(model_name="m", path=path, device="cpu", num_threads=1, options=ClipOptions(**options)))


def sequences_of(model: ClipModel, wanted: EmbeddingInput) -> list[Any]:
    """The prepared sequences of a request."""
    request = Request(request_id="r", input=wanted, arrived_s=0.0)
    return [s for piece in model.split(request) for s in model.prepare(request, piece)]


def vectors_of(model: ClipModel, wanted: EmbeddingInput) -> NDArray[np.float32]:
    """What the batch manager does with a request: one step for each batch key."""
    sequences = sequences_of(model, wanted)
    for key in {model.cost(s).batch_key for s in sequences}:
        batch = [Granted(s, model.cost(s).units) for s in sequences if model.cost(s).batch_key == key]
        assert all(outcome.done and outcome.error is None for outcome in model.step(batch))
    request = Request(request_id="r", input=wanted, arrived_s=0.0)
    result = model.finish(request, sequences).result
    return np.frombuffer(result.vectors, "<f4").reshape(len(sequences), result.dimension)


def picture(seed: int, width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """Noise: no two pictures look alike."""
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode=mode) if channels == 1 else Image.fromarray(pixels)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
