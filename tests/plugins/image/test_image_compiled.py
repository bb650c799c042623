"""Pictures of compiled and of recorded denoisers are the stock pipeline's, drawn together with any others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from sixfold.core.errors import ConfigError
from sixfold.core.rendezvous.graphs import RowGraphs
from sixfold.plugins.image import loader
from sixfold.plugins.image.model import ImageModel
from sixfold.plugins.image.options import ImageOptions
from sixfold.plugins.image.schema import ImageInput
from tests.core.rendezvous.recorder import Recorder
from tests.plugins.image.conftest import pixels
from tests.plugins.image.test_image_model import draw, result_of, stock

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
Load = Callable[..., ImageModel]
WANTED = [
    ImageInput(prompt="a red circle", seed=index, num_inference_steps=3 + index, guidance_scale=scale)
    for index, scale in enumerate((3.0, 5.0, 1.0, 7.5))
]


def largest_difference(folder: Path, results: list[Any]) -> int:
    """In steps of 256, between the pictures and the stock pipeline's."""
    pipeline: Any = stock(folder)
    worst = 0
    for wanted, result in zip(WANTED, results, strict=True):
        alone: Any = pipeline(
            prompt=wanted.prompt,
            num_inference_steps=wanted.num_inference_steps,
            guidance_scale=wanted.guidance_scale,
            generator=torch.Generator().manual_seed(wanted.seed or 0),
            output_type="np",
        ).images[0]
        difference = np.asarray(pixels(result.pictures[0].data) - cast(Any, np).round(alone * 255))
        worst = max(worst, int(np.abs(difference).max()))
    return worst


async def test_pictures_of_recorded_forwards_are_the_stock_pipelines(folder: Path, load_image_model: Load) -> None:
    model = load_image_model()
    recorder = Recorder()
    cast(Any, model)._graphs = RowGraphs(recorder, torch.device("cpu"), (1, 2, 4, 8))
    model.warm_up()  # records the usual shape; others come often enough or are computed
    found = await draw(model, *WANTED)
    assert largest_difference(folder, [result_of(events) for events in found]) <= 1
    assert recorder.num_recorded > 0
    assert model.stats()["image_replayed_forwards_total"] > 0


@pytest.mark.slow  # compiles for a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
async def test_pictures_of_compiled_blocks_are_the_stock_pipelines(folder: Path, load_image_model: Load) -> None:
    model = load_image_model(compile=True)
    model.warm_up()
    found = await draw(model, *WANTED)
    assert largest_difference(folder, [result_of(events) for events in found]) <= 1


def test_a_denoiser_without_repeated_blocks_is_not_compiled() -> None:
    class Plain(torch.nn.Module):
        def compile_repeated_blocks(self, **_: Any) -> None:
            raise ValueError("`_repeated_blocks` attribute is empty.")

    with pytest.raises(ConfigError, match="Remove compile"):
        cast(Any, loader)._compile_or_cache([Plain()], ImageOptions(compile=True))
