"""Pictures drawn after several images: each is what the stock pipeline draws after the same list."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from sixfold.core.family import LoadContext
from sixfold.plugins.image.loader import build
from sixfold.plugins.image.model import ImageModel
from sixfold.plugins.image.options import ImageOptions
from sixfold.plugins.image.rules import plan
from sixfold.plugins.image.schema import ImageInput
from tests.core.rendezvous.harness import PipelineModel, alone, hold_first_step, run_together
from tests.plugins.image.conftest import png
from tests.plugins.image.test_image_model import close_to, draw, error_of, result_of
from tests.tiny_image_folder import clip_tokenizer
from tests.tiny_pipelines import flux2, qwen_image, randomized

D: Any = diffusers
T: Any = transformers
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def flux2_with_text() -> Any:
    """FLUX.2 klein reads three layers of a language model that has at least 28."""
    tokenizer = clip_tokenizer()
    tokenizer.chat_template = CHAT
    config = T.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        bos_token_id=0,
        eos_token_id=0,
    )
    parts = {**flux2().pipeline.components, "tokenizer": tokenizer}
    pipeline = D.Flux2KleinPipeline(**{**parts, "text_encoder": randomized(T.Qwen3ForCausalLM(config))})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def model() -> Iterator[ImageModel]:
    options = ImageOptions(size="64x64", max_pixels=128 * 128)
    context = LoadContext(model_name="m", path=Path(), device="cpu", num_threads=1, options=options)
    model = build(flux2_with_text(), context)
    yield model
    model.close()


def pictures(*sizes: tuple[int, int]) -> tuple[bytes, ...]:
    return tuple(png(*size, seed=index) for index, size in enumerate(sizes))


async def test_pictures_after_none_one_and_several_images_at_once_are_what_the_stock_pipeline_draws(
    model: ImageModel,
) -> None:
    same = ImageInput(operation="edit", prompt="a red ball", size="64x64", num_inference_steps=2)
    wanted = [
        msgspec.structs.replace(same, operation="generate", seed=1),
        msgspec.structs.replace(same, seed=2, images=pictures((64, 64))),
        msgspec.structs.replace(same, seed=3, images=pictures((64, 64), (64, 96))),
        # As many positions in another layout: these must not share a step with those before.
        msgspec.structs.replace(same, seed=4, images=pictures((64, 64), (96, 64))),
        msgspec.structs.replace(same, seed=5, images=pictures((64, 64), (64, 96)), prompt="sky", guidance_scale=1.0),
        msgspec.structs.replace(same, seed=6, images=pictures((64, 64)), size=None, num_inference_steps=3),
    ]
    found = await draw(model, *wanted)
    stock = flux2_with_text()
    for each, events in zip(wanted, found, strict=True):
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in each.images]
        expected = stock(
            image=images or None,
            prompt=each.prompt,
            height=64,
            width=64,
            num_inference_steps=each.num_inference_steps,
            guidance_scale=4.0 if each.guidance_scale is None else each.guidance_scale,
            generator=torch.Generator().manual_seed(each.seed or 0),
        ).images[0]
        assert close_to(result_of(events).pictures[0].data, expected), each.seed


@pytest.mark.parametrize("preview", ["decode", "linear"])
async def test_a_picture_after_images_has_previews(model: ImageModel, preview: Any) -> None:
    images = pictures((64, 64), (64, 64))
    wanted = ImageInput(operation="edit", prompt="a", images=images, num_inference_steps=3, partial_images=1)
    (events,) = await draw(model, msgspec.structs.replace(wanted, preview=preview))
    assert len(result_of(events).pictures) == 1
    assert sum("PartialImage" in type(getattr(event, "output", None)).__name__ for event in events) == 1


@pytest.mark.parametrize("images", [pictures((64, 64), (32, 64)), pictures((64, 64)) * 17], ids=["small", "many"])
async def test_images_that_the_model_cannot_use_are_refused(model: ImageModel, images: tuple[bytes, ...]) -> None:
    (events,) = await draw(model, ImageInput(operation="edit", prompt="a", images=images))
    error = error_of(events)
    assert (error.status, error.param) == (400, "image")


def test_the_model_says_how_many_images_it_takes(model: ImageModel) -> None:
    assert model.info.details["max_input_images"] == 16


async def test_qwen_image_edit_plus_draws_after_lists_of_images_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = __import__(D.QwenImageEditPlusPipeline.__module__, fromlist=["VAE_IMAGE_SIZE"])
    monkeypatch.setattr(module, "VAE_IMAGE_SIZE", 32 * 32)
    monkeypatch.setattr(module, "CONDITION_IMAGE_SIZE", 32 * 32)
    tiny = qwen_image()
    parts = {**tiny.pipeline.components, "processor": None}
    pipeline = D.QwenImageEditPlusPipeline(**parts)

    def work(index: int) -> Callable[[], dict[str, Any]]:
        return lambda: {
            **tiny.prompt(10 * index),
            "image": [
                Image.open(io.BytesIO(data)) for data in pictures(*[(32, 32), (64, 32), (32, 64)][: 1 + index % 3])
            ],
            "true_cfg_scale": (1.5, 4.0)[index % 2],
            "num_inference_steps": 2 + index % 2,
            "height": 32,
            "width": 32,
            "generator": torch.Generator().manual_seed(index),
            "output_type": "np",
        }

    works = {f"r{index}": work(index) for index in range(6)}
    model = PipelineModel(pipeline, works, plan=plan(16))
    hold_first_step(model, until_prepared=6)
    assert await run_together(model) == {}
    assert any(len(set(batch)) > 1 for batch in model.batches)
    for name, each in works.items():
        assert np.abs(model.results[name] - alone(pipeline, each)).max() <= 1e-5, name
