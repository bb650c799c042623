"""Families of diffusers pipelines draw together, mixed, what each request draws alone with the stock pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sixfold.plugins.image.previews import decodable, decoded_image
from sixfold.plugins.image.roles import role_of
from sixfold.plugins.image.rules import plan
from tests.core.rendezvous.harness import PipelineModel, alone, run_together, works_for
from tests.tiny_pipelines import FAMILIES

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("family", FAMILIES)
async def test_mixed_requests_draw_what_each_draws_alone(family: str) -> None:
    tiny = FAMILIES[family]()
    works = works_for(tiny)
    model = PipelineModel(tiny.pipeline, works, plan=plan(16))
    assert await run_together(model) == {}
    assert max(len(set(batch)) for batch in model.batches) >= 2  # requests did share forwards
    assert all(model.merges_rightly.values())
    for name, work in works.items():
        assert np.abs(model.results[name] - alone(tiny.pipeline, work)).max() <= 1e-5, name
    assert np.abs(model.results["r0"] - model.results["r1"]).max() > 0.05  # the equality is not trivial


@pytest.mark.parametrize("family", FAMILIES)
def test_the_preview_of_the_last_step_is_the_picture(family: str) -> None:
    tiny = FAMILIES[family]()
    (first, *_) = works_for(tiny).values()
    seen: list[torch.Tensor] = []

    def after_step(_pipeline: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"])
        return {}

    def after_old_step(step: int, time: Any, latents: torch.Tensor) -> None:
        seen.append(latents)

    arguments: dict[str, Any] = {**first(), "output_type": "pil"}
    if role_of(tiny.pipeline).takes("callback_on_step_end"):
        arguments["callback_on_step_end"] = after_step
    else:
        arguments |= {"callback": after_old_step, "callback_steps": 1}
    tiny.pipeline.set_progress_bar_config(disable=True)
    expected = tiny.pipeline(**arguments).images[0]
    with torch.no_grad():
        latents = decodable(tiny.pipeline, seen[-1], arguments["width"], arguments["height"])
        image = decoded_image(tiny.pipeline, tiny.pipeline.vae.decode(latents, return_dict=False))
    difference = np.asarray(image).astype(int) - np.asarray(expected).astype(int)
    assert np.abs(difference).max() <= 1
