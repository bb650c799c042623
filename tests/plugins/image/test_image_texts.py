"""From a prompt to a picture: what each family's pipeline does with its own tokenizers and text encoders, in company."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from sixfold.core.family import LoadContext
from sixfold.plugins.image.loader import load
from sixfold.plugins.image.options import ImageOptions
from sixfold.plugins.image.schema import ImageInput
from tests.plugins.image.test_image_model import close_to, draw, result_of
from tests.tiny_pipelines import FAMILIES
from tests.tiny_texts import with_texts

D: Any = diffusers
_SIZES = {"sana": 512, "pixart": 256}
"""Those have sizes of their own, whatever is asked for."""
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As requests have; the bits of a sum depend on how many share it."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("family", FAMILIES)
async def test_prompts_at_once_are_drawn_as_the_stock_pipeline_draws_each(family: str, tmp_path: Path) -> None:
    with_texts(family).save_pretrained(tmp_path)
    side = _SIZES.get(family, 64)
    options = ImageOptions(size=f"{side}x{side}", max_pixels=side * side)
    model = load(LoadContext(model_name="m", path=tmp_path, device="cpu", num_threads=1, options=options))
    wanted = [
        ImageInput(prompt=prompt, seed=seed, num_inference_steps=2)
        for seed, prompt in enumerate(("a red ball", "a blue box in a room full of them"))
    ]
    try:
        model.warm_up()
        found = await draw(model, *wanted)
    finally:
        model.close()
    stock = D.DiffusionPipeline.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    for each, events in zip(wanted, found, strict=True):
        expected = stock(
            prompt=each.prompt,
            **({"negative_prompt": " "} if family == "qwen_image" else {}),
            num_inference_steps=2,
            height=side,
            width=side,
            generator=torch.Generator().manual_seed(each.seed or 0),
        ).images[0]
        assert close_to(result_of(events).pictures[0].data, expected), each.prompt
