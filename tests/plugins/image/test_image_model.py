"""Requests drawn by the model, many at once, are what the stock pipelines draw for each alone."""

from __future__ import annotations

import contextlib
import copy
import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from sixfold.core.errors import ContextLengthExceeded, InvalidRequest, RequestError
from sixfold.core.family import LoadContext
from sixfold.core.messages import Event, Failed, Finished, Increment, Request
from sixfold.core.runtime.local_replica import LocalReplica
from sixfold.core.runtime.replica import EventStream
from sixfold.plugins.image.loader import build
from sixfold.plugins.image.model import ImageModel
from sixfold.plugins.image.options import ImageOptions
from sixfold.plugins.image.schema import ImageInput, ImageResult, PartialImage, StepProgress
from tests.plugins.image.conftest import pixels, png

D: Any = diffusers
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
Load = Callable[..., ImageModel]


async def draw(model: ImageModel, *inputs: ImageInput) -> list[list[Event]]:
    """All events of each request; they run together."""
    replica = LocalReplica(model)
    streams: list[EventStream | RequestError] = []
    for index, wanted in enumerate(inputs):
        try:
            streams.append(replica.submit(Request(request_id=f"r{index}", input=wanted, arrived_s=0.0)))
        except RequestError as error:
            streams.append(error)
    found: list[list[Event]] = []
    for index, stream in enumerate(streams):
        events: list[Event] = []
        if isinstance(stream, RequestError):
            events.append(Failed(request_id=f"r{index}", error=stream))
        else:
            async with stream:
                while new := await stream.next_events():
                    events.extend(new)
        found.append(events)
    await replica.close()
    return found


def result_of(events: Sequence[Event]) -> ImageResult:
    last = events[-1]
    assert isinstance(last, Finished), last
    assert isinstance(last.result, ImageResult)
    return last.result


def error_of(events: Sequence[Event]) -> RequestError:
    last = events[-1]
    assert isinstance(last, Failed), last
    return last.error


def stock(folder: Any, kind: str = "StableDiffusionPipeline", scheduler: str | None = None) -> Any:
    pipeline = getattr(D, kind).from_pretrained(folder)
    if scheduler is not None:
        pipeline.scheduler = getattr(D, scheduler).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def close_to(data: bytes, expected: Any) -> bool:
    """Equal up to one step of one channel's rounding."""
    return int(np.abs(pixels(data) - np.asarray(expected.convert("RGB")).astype(np.int64)).max()) <= 1


async def test_mixed_requests_at_once_are_what_the_stock_pipeline_draws(load_image_model: Load, folder: Any) -> None:
    wanted = [
        ImageInput(prompt="a red ball", seed=1, num_inference_steps=3, guidance_scale=5.0),
        ImageInput(prompt="a blue box", seed=2, num_inference_steps=5, negative_prompt="red"),
        ImageInput(prompt="a cat", seed=3, num_inference_steps=4, size="16x32", guidance_scale=1.0),
        ImageInput(prompt="dogs", seed=4, num_inference_steps=4, scheduler="EulerDiscreteScheduler"),
        ImageInput(prompt="sky", seed=5, num_inference_steps=3, exact=True),
    ]
    found = await draw(load_image_model(), *wanted)
    for each, events in zip(wanted, found, strict=True):
        (picture,) = result_of(events).pictures
        width, height = map(int, (each.size or "32x32").split("x"))
        expected = stock(folder, scheduler=each.scheduler)(
            each.prompt,
            negative_prompt=each.negative_prompt,
            num_inference_steps=each.num_inference_steps,
            guidance_scale=7.5 if each.guidance_scale is None else each.guidance_scale,
            width=width,
            height=height,
            generator=torch.Generator().manual_seed(picture.seed),
        ).images[0]
        assert close_to(picture.data, expected), each.prompt
        assert picture.seed == each.seed


async def test_an_image_to_image_request_is_what_the_stock_pipeline_draws(load_image_model: Load, folder: Any) -> None:
    data = png(32, 32)
    wanted = ImageInput(operation="edit", prompt="x", images=(data,), seed=1, num_inference_steps=6, strength=0.5)
    (events,) = await draw(load_image_model(), wanted)
    result = result_of(events)
    expected = stock(folder, "StableDiffusionImg2ImgPipeline")(
        "x",
        image=Image.open(io.BytesIO(data)),
        strength=0.5,
        num_inference_steps=6,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert close_to(result.pictures[0].data, expected)
    assert result.num_inference_steps == 3


async def test_a_mask_is_filled_as_the_stock_inpainting_pipeline_fills_it(load_image_model: Load, folder: Any) -> None:
    data, mask = png(32, 32), png(32, 32, hole=True)
    wanted = ImageInput(
        operation="edit", prompt="x", images=(data,), mask=mask, seed=1, num_inference_steps=4, strength=1.0
    )
    (events,) = await draw(load_image_model(), wanted)
    white = Image.new("L", (32, 32), 0)
    white.paste(255, (0, 0, 16, 32))
    expected = stock(folder, "StableDiffusionInpaintPipeline")(
        "x",
        image=Image.open(io.BytesIO(data)),
        mask_image=white,
        strength=1.0,
        height=32,
        width=32,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert close_to(result_of(events).pictures[0].data, expected)


async def test_each_of_n_pictures_has_the_next_seed_and_can_be_drawn_again_by_it(load_image_model: Load) -> None:
    model = load_image_model()
    many, one = await draw(
        model,
        ImageInput(prompt="a", n=3, seed=7, num_inference_steps=2),
        ImageInput(prompt="a", seed=9, num_inference_steps=2),
    )
    pictures = result_of(many).pictures
    assert [picture.seed for picture in pictures] == [7, 8, 9]
    assert np.abs(pixels(pictures[2].data) - pixels(result_of(one).pictures[0].data)).max() <= 1
    assert np.abs(pixels(pictures[0].data) - pixels(pictures[1].data)).max() > 8


async def test_progress_and_partial_images_come_before_the_result(load_image_model: Load) -> None:
    model = load_image_model()
    (events,) = await draw(model, ImageInput(prompt="a", seed=1, num_inference_steps=6, partial_images=2))
    outputs = [event.output for event in events if isinstance(event, Increment)]
    assert [out.step for out in outputs if isinstance(out, StepProgress)] == [1, 2, 3, 4, 5, 6]
    partials = [out for out in outputs if isinstance(out, PartialImage)]
    assert [partial.partial_index for partial in partials] == [0, 1]
    assert pixels(partials[0].data).shape == (32, 32, 3)


async def test_a_linear_preview_needs_no_decoder(load_image_model: Load) -> None:
    model = load_image_model()
    decoded_before = model.stats()["image_decode_calls_total"]
    wanted = ImageInput(prompt="a", seed=1, num_inference_steps=6, partial_images=2, preview="linear", size="32x48")
    (events,) = await draw(model, wanted)
    outputs = [event.output for event in events if isinstance(event, Increment)]
    partials = [out for out in outputs if isinstance(out, PartialImage)]
    assert [pixels(partial.data).shape for partial in partials] == [(48, 32, 3)] * 2
    assert model.stats()["image_decode_calls_total"] == decoded_before + 1  # of the picture itself
    assert [partial.partial_index for partial in partials] == [0, 1]


async def test_the_operator_chooses_how_previews_are_made_and_a_request_may_choose_otherwise(
    load_image_model: Load,
) -> None:
    model = load_image_model(preview="linear")
    same = ImageInput(prompt="a", seed=1, num_inference_steps=4, partial_images=1)
    await draw(model, same, msgspec.structs.replace(same, preview="decode"))
    assert model.stats()["image_decode_calls_total"] == 3  # two pictures and one preview


async def test_quality_chooses_the_steps(load_image_model: Load) -> None:
    model = load_image_model(num_inference_steps=5, quality_steps={"high": 9})
    low, medium, high = await draw(
        model, *(ImageInput(prompt="a", quality=quality) for quality in ("low", "medium", "high"))
    )
    assert [result_of(events).num_inference_steps for events in (low, medium, high)] == [2, 5, 9]


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        (ImageInput(prompt="a", size="33x32"), "size"),
        (ImageInput(prompt="a", size="12x"), "size"),
        (ImageInput(prompt="a", size="640x640"), "size"),
        (ImageInput(prompt="a", n=11), "n"),
        (ImageInput(prompt="a", num_inference_steps=201), "num_inference_steps"),
        (ImageInput(prompt="a", scheduler="NoScheduler"), "scheduler"),
        (ImageInput(prompt="a", row_cache_threshold=0.1), "row_cache_threshold"),
        (ImageInput(operation="edit", prompt="a", images=(b"",)), "image"),
        (ImageInput(operation="edit", prompt="a", images=(b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 99,)), "image"),
        (ImageInput(operation="edit", prompt="a", images=(png()[:-40],)), "image"),
        (ImageInput(operation="edit", prompt="a", images=(png(300, 300),)), "image"),
        (ImageInput(operation="edit", prompt="a", images=(png(), png())), "image"),
        (ImageInput(operation="edit", prompt="a", images=(png(),), mask=png()), "mask"),
        (ImageInput(operation="edit", prompt="a", images=(png(),), mask=png(16, 16, hole=True)), "mask"),
        (ImageInput(operation="edit", prompt="a", images=(png(),), strength=0.01), "strength"),
    ],
)
async def test_bad_input_is_refused_with_the_name_of_its_field(
    load_image_model: Load, wanted: ImageInput, param: str
) -> None:
    (events,) = await draw(load_image_model(), wanted)
    error = error_of(events)
    assert isinstance(error, InvalidRequest)
    assert error.param == param


async def test_a_prompt_that_no_text_encoder_would_read_to_its_end_is_refused(load_image_model: Load) -> None:
    (events,) = await draw(load_image_model(), ImageInput(prompt="x" * 100))
    assert isinstance(error_of(events), ContextLengthExceeded)


async def test_a_cancelled_picture_ends_within_a_step_and_the_others_go_on(load_image_model: Load, folder: Any) -> None:
    model = load_image_model()
    replica = LocalReplica(model)
    long = replica.submit(
        Request(request_id="long", input=ImageInput(prompt="a", num_inference_steps=200), arrived_s=0.0)
    )
    short = replica.submit(
        Request(request_id="short", input=ImageInput(prompt="b", seed=1, num_inference_steps=4), arrived_s=0.0)
    )
    async with short:
        await long.next_events()
        calls_before = model.num_calls
        long.cancel()
        events: list[Event] = []
        while new := await short.next_events():
            events.extend(new)
    expected = stock(folder)("b", num_inference_steps=4, generator=torch.Generator().manual_seed(1)).images[0]
    assert close_to(result_of(events).pictures[0].data, expected)
    assert model.num_calls - calls_before <= 4 + 3
    await replica.close()


def test_a_copy_of_the_scheduler_keeps_the_loaded_one_unused(load_image_model: Load) -> None:
    model = load_image_model()
    before = copy.deepcopy(model._planner.roles.generate.pipeline.scheduler.__dict__)  # type: ignore[union-attr]
    model.warm_up()
    after = model._planner.roles.generate.pipeline.scheduler.__dict__  # type: ignore[union-attr]
    assert after.keys() == before.keys()
    assert after.get("num_inference_steps") == before.get("num_inference_steps")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_no_request_is_to_cast_the_autoencoder_that_all_share(folder: Path, dtype: str) -> None:
    pipeline = D.StableDiffusionPipeline.from_pretrained(str(folder))
    pipeline.vae.register_to_config(force_upcast=True)  # SDXL's image-to-image obeys it in every type
    options = ImageOptions.model_validate({"dtype": dtype})
    build(pipeline, LoadContext(model_name="m", path=folder, device="cpu", num_threads=1, options=options)).close()
    assert pipeline.vae.config.force_upcast is False


async def test_no_two_requests_use_a_tokenizer_at_once(
    load_image_model: Load, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding is a setting of it: an exact request's would be taken for another's, and its picture would be wrong."""
    model = load_image_model()
    tokenizer: Any = stock(folder).tokenizer.__class__
    call, at_once, met = tokenizer.__call__, threading.Barrier(2), threading.Event()

    def wait_for_another(self: Any, *args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            at_once.wait(timeout=1.0)
            met.set()
        return call(self, *args, **kwargs)

    monkeypatch.setattr(tokenizer, "__call__", wait_for_another)
    wanted = [ImageInput(prompt="sky", seed=5, num_inference_steps=2, exact=exact) for exact in (True, False)]
    found = await draw(model, *wanted)
    monkeypatch.undo()
    assert not met.is_set()
    expected = stock(folder)("sky", num_inference_steps=2, generator=torch.Generator().manual_seed(5)).images[0]
    assert all(close_to(result_of(events).pictures[0].data, expected) for events in found)
