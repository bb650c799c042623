"""The model that ships with the repository: eight mixed requests at once, one cancelled and one poisoned beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sixfold.core.errors import StepFailed
from sixfold.core.family import LoadContext
from sixfold.core.messages import Event, Failed, Request
from sixfold.core.rendezvous.calls import ModuleCall
from sixfold.core.runtime.local_replica import LocalReplica
from sixfold.plugins.image.loader import load
from sixfold.plugins.image.model import ImageModel
from sixfold.plugins.image.options import ImageOptions
from sixfold.plugins.image.schema import ImageInput
from tests.plugins.image.conftest import pixels
from tests.plugins.image.test_image_model import result_of

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "tiny_image"
D: Any = diffusers
PROMPTS = (
    "a small red circle above a large blue square on a green background",
    "a large yellow triangle on a white background",
    "two small blue circles on a black background",
    "a small green square on a red background",
)


@pytest.mark.filterwarnings("ignore::FutureWarning")
async def test_eight_mixed_requests_equal_each_alone_beside_a_cancelled_and_a_poisoned_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together: Any = getattr(ImageModel, "_together")  # noqa: B009 - the one place where a forward can be made to fail

    def poisoned(model: ImageModel, calls: Sequence[ModuleCall]) -> list[Any]:
        if any(call.owner is not None and call.owner.request_id == "poisoned" for call in calls):
            raise RuntimeError("poisoned")
        answers: list[Any] = together(model, calls)
        return answers

    monkeypatch.setattr(ImageModel, "_together", poisoned)
    context = LoadContext(model_name="m", path=FOLDER, device="cpu", num_threads=1, options=ImageOptions())
    model = load(context)
    replica = LocalReplica(model)
    wanted = {
        f"r{index}": ImageInput(
            prompt=PROMPTS[index % 4],
            seed=index,
            num_inference_steps=6 + index % 3,
            guidance_scale=(2.0, 4.0, 7.0)[index % 3],
            size="64x64" if index % 4 else "64x48",
        )
        for index in range(8)
    }
    wanted |= {"poisoned": ImageInput(prompt=PROMPTS[0]), "cancelled": ImageInput(prompt=PROMPTS[1])}
    streams = {
        name: replica.submit(Request(request_id=name, input=each, arrived_s=0.0)) for name, each in wanted.items()
    }
    await streams["cancelled"].next_events()
    streams["cancelled"].cancel()
    found: dict[str, list[Event]] = {}
    for name, stream in streams.items():
        async with stream:
            found[name] = []
            while events := await stream.next_events():
                found[name].extend(events)
    await replica.close()
    assert model.num_calls > model.num_forwards  # they did share
    end = found["poisoned"][-1]
    assert isinstance(end, Failed)
    assert isinstance(end.error, StepFailed)
    pipeline = D.DiffusionPipeline.from_pretrained(str(FOLDER))
    pipeline.set_progress_bar_config(disable=True)
    for name in (f"r{index}" for index in range(8)):
        each = wanted[name]
        width, height = map(int, (each.size or "").split("x"))
        expected = pipeline(
            each.prompt,
            num_inference_steps=each.num_inference_steps,
            guidance_scale=each.guidance_scale,
            width=width,
            height=height,
            generator=torch.Generator().manual_seed(each.seed or 0),
        ).images[0]
        difference = pixels(result_of(found[name]).pictures[0].data) - np.asarray(expected).astype(np.int64)
        assert np.abs(difference).max() <= 1, name
