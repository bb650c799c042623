"""Each clip of a running batch equals the one that the stock pipeline makes alone."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from sixfold.core.batching.manager import Limits
from sixfold.core.errors import InvalidRequest, StepFailed
from sixfold.core.messages import Failed, Finished, Increment, Request
from sixfold.core.runtime.local_replica import LocalReplica
from sixfold.core.runtime.replica import EventStream
from sixfold.plugins.video import encoding
from sixfold.plugins.video import model as video_model
from sixfold.plugins.video.messages import ReferenceAccepted, ReferenceCheck, VideoInput, VideoProgress
from sixfold.plugins.video.model import VideoModel
from tests.core.rendezvous.harness import hold_first_step
from tests.plugins.video.conftest import Load, clip
from tests.plugins.video.test_video_server import png

TOLERANCE = {"wan": 1e-5, "wan_image": 1e-5, "ltx": 1e-5, "hunyuan": 1e-4, "cogvideox": 1e-4}


@pytest.fixture
def videos(monkeypatch: pytest.MonkeyPatch) -> dict[int, torch.Tensor]:
    """What pipelines returned inside the model, by the seed of their request, before it is rounded to bytes."""
    seen: dict[int, torch.Tensor] = {}
    run = VideoModel.run_pipeline
    to_frames = video_model.to_frames

    def watched(self: VideoModel, request: Request[Any], piece: object, side: Any) -> Any:
        # Each pipeline has a thread of its own, in which nothing else is converted.
        mine.seed = request.input.seed
        return run(self, request, piece, side)

    def note(video: torch.Tensor) -> Any:
        seen[mine.seed] = video.clone()
        return to_frames(video)

    mine = threading.local()
    monkeypatch.setattr(VideoModel, "run_pipeline", watched)
    monkeypatch.setattr(video_model, "to_frames", note)
    return seen


@asynccontextmanager
async def serving(model: VideoModel, **limits: Any) -> AsyncGenerator[LocalReplica]:
    replica = LocalReplica(model, limits=Limits(**limits))
    try:
        yield replica
    finally:
        await replica.close()


def submit(replica: LocalReplica, wanted: Any, name: str | None = None) -> EventStream:
    request_id = name or f"clip-{wanted.seed}"
    return replica.submit(Request(request_id=request_id, input=wanted, arrived_s=time.monotonic()))


async def last_event(stream: EventStream) -> Any:
    while True:
        events = await stream.next_events()
        if isinstance(events[-1], Finished | Failed):
            return events[-1]


async def until_step(stream: EventStream, step: int) -> None:
    """Reads events until this many steps of the request are done."""
    while True:
        for event in await stream.next_events():
            assert isinstance(event, Increment), event
            if isinstance(event.output, VideoProgress) and event.output.num_steps_done >= step:
                return


def alone(pipeline: Any, wanted: VideoInput, name: str) -> torch.Tensor:
    """The stock pipeline's own answer, with arguments as a user of diffusers would write them."""
    arguments: dict[str, Any] = {
        "prompt": wanted.prompt,
        "height": wanted.height,
        "width": wanted.width,
        "num_frames": wanted.num_frames,
        "num_inference_steps": wanted.num_inference_steps,
        "guidance_scale": wanted.guidance_scale,
        "generator": torch.Generator().manual_seed(wanted.seed),
        "output_type": "pt",
    }
    if wanted.negative_prompt is not None:
        arguments["negative_prompt"] = wanted.negative_prompt
    if name == "ltx":
        arguments["frame_rate"] = wanted.fps
    if wanted.reference is not None:
        arguments["image"] = Image.open(io.BytesIO(wanted.reference))
    video: torch.Tensor = pipeline(**arguments).frames[0]
    return video


def mixed(name: str) -> list[VideoInput]:
    """Six requests that differ in everything that may differ inside a batch, and two of another size."""
    guidance = [1.0, 3.0, 6.5, 4.0, 2.0, 5.0]
    images = [png((40 * seed, 200 - 30 * seed, 90)) if name == "wan_image" else None for seed in range(6)]
    clips = [
        clip(
            f"{seed} red balls move right",
            seed=seed,
            num_inference_steps=3 + seed,
            guidance_scale=guidance[seed],
            reference=images[seed],
            negative_prompt="blue squares" if seed == 2 and name in ("wan", "ltx", "cogvideox") else None,
        )
        for seed in range(6)
    ]
    if name != "wan_image":
        clips[4:] = [msgspec.structs.replace(wanted, width=64, num_frames=5) for wanted in clips[4:]]
    return clips


@pytest.mark.parametrize("name", TOLERANCE)
async def test_mixed_requests_of_one_batch_equal_the_stock_pipeline_alone(
    name: str, load_tiny: Load, stock: Callable[[str], Any], videos: dict[int, torch.Tensor]
) -> None:
    await check_mixed(load_tiny(name), name, stock(name), videos)


@pytest.mark.slow  # compiles for a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
async def test_clips_of_compiled_blocks_equal_the_stock_pipeline_alone(
    load_tiny: Load, stock: Callable[[str], Any], videos: dict[int, torch.Tensor]
) -> None:
    await check_mixed(load_tiny("wan", compile=True), "wan", stock("wan"), videos)


async def check_mixed(model: VideoModel, name: str, pipeline: Any, videos: dict[int, torch.Tensor]) -> None:
    requests = mixed(name)
    hold_first_step(model, until_prepared=4)
    async with serving(model) as replica:
        first = submit(replica, requests[0])
        streams = [submit(replica, wanted) for wanted in requests[1:4]]
        await until_step(first, 1)  # the others arrive while some run
        streams += [submit(replica, wanted) for wanted in requests[4:]]
        for stream in (first, *streams):
            assert isinstance(await last_event(stream), Finished)
    expected = [alone(pipeline, wanted, name) for wanted in requests]
    for wanted, video in zip(requests, expected, strict=True):
        assert videos[wanted.seed].shape == video.shape
        assert (videos[wanted.seed] - video).abs().max() <= TOLERANCE[name]
    # The check has teeth: other requests give other clips.
    assert (expected[0] - expected[1]).abs().max() > 100 * TOLERANCE[name]
    assert model.num_calls > model.num_forwards, "nothing shared a forward"


async def test_a_cancelled_clip_leaves_within_one_step_and_its_neighbour_is_unharmed(
    load_tiny: Load, stock: Callable[[str], Any], videos: dict[int, torch.Tensor]
) -> None:
    model = load_tiny("wan")
    long, short = clip(seed=1, num_inference_steps=90), clip(seed=2, num_inference_steps=6)
    async with serving(model) as replica:
        doomed, neighbour = submit(replica, long), submit(replica, short)
        await until_step(doomed, 2)
        rows = model.num_rows
        doomed.cancel()
        assert isinstance(await last_event(neighbour), Finished)
        # Two branches of guidance a step: at most the step in work, and what the neighbour still needed.
        assert model.num_rows - rows <= 2 * 6 + 4
    assert 1 not in videos
    assert (videos[2] - alone(stock("wan"), short, "wan")).abs().max() <= 1e-5


async def test_a_clip_is_cancelled_while_it_is_encoded(load_tiny: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()

    def slow(frames: Any, **_settings: Any) -> bytes:
        entered.set()
        go.wait(30)
        list(frames)  # the next frame is asked for after the cancellation
        raise AssertionError("the request had left")

    model = load_tiny("wan")
    monkeypatch.setattr(video_model, "encode", slow)
    async with serving(model) as replica:
        stream = submit(replica, clip(seed=3))
        await asyncio.to_thread(entered.wait, 30)
        stream.cancel()
        other = submit(replica, clip(seed=4, num_inference_steps=2))
        await until_step(other, 2)  # the loop turned: the cancellation is done
        go.set()
        other.cancel()
    assert model.stats()["videos_total"] == 0


async def test_a_poisoned_clip_fails_alone(load_tiny: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_tiny("ltx")

    def poisoned(frames: Any, *, fps: int, **settings: Any) -> bytes:
        if fps == 7:
            raise OSError("no space left on device")
        return encoding.encode(frames, fps=fps, **settings)

    monkeypatch.setattr(video_model, "encode", poisoned)
    async with serving(model) as replica:
        streams = [submit(replica, clip(seed=seed, fps=7 if seed == 1 else 8)) for seed in range(3)]
        ends = [await last_event(stream) for stream in streams]
    assert [type(end).__name__ for end in ends] == ["Finished", "Failed", "Finished"]
    assert isinstance(ends[1].error, StepFailed)
    assert "space" not in ends[1].error.message


async def test_a_clip_tells_each_step_then_its_file_then_its_stills(load_tiny: Load) -> None:
    model = load_tiny("wan")
    async with serving(model) as replica:
        stream = submit(replica, clip(seed=1, num_inference_steps=5))
        events: list[Any] = []
        while not events or isinstance(events[-1], Increment):
            events += await stream.next_events()
    outputs = [event.output for event in events[:-1]]
    assert outputs[:5] == [VideoProgress(num_steps_done=done, num_steps=5) for done in range(1, 6)]
    assert sum(len(chunk.data) for chunk in outputs[5:]) == events[-1].result.num_bytes > 0
    assert events[-1].usage.counts == {"frames": 9, "num_inference_steps": 5}
    stats = model.stats()
    assert (stats["videos_total"], stats["video_frames_total"], stats["num_inference_steps_total"]) == (1, 9, 5)


async def test_a_reference_is_checked_without_a_step(load_tiny: Load) -> None:
    model = load_tiny("wan_image")
    async with serving(model) as replica:
        good = ReferenceCheck(reference=png((1, 2, 3)), width=32, height=32)
        end = await last_event(submit(replica, good, "good"))
        assert not isinstance(end, Failed) and end.result == ReferenceAccepted()
        bad = ReferenceCheck(reference=png((1, 2, 3), (16, 16)), width=32, height=32)
        end = await last_event(submit(replica, bad, "bad"))
        assert isinstance(end, Failed) and isinstance(end.error, InvalidRequest)
        assert end.error.param == "input_reference"
    assert model.num_forwards == 0


async def test_the_loaded_pipeline_is_not_changed_by_requests(load_tiny: Load) -> None:
    model = load_tiny("wan")
    pipeline: Any = vars(model)["_pipeline"]
    before = {name: id(part) for name, part in pipeline.components.items()}
    scheduler = dict(pipeline.scheduler.__dict__)
    async with serving(model) as replica:
        assert isinstance(await last_event(submit(replica, clip(seed=1))), Finished)
    assert {name: id(part) for name, part in pipeline.components.items()} == before
    assert np.all([scheduler[key] is value for key, value in pipeline.scheduler.__dict__.items()])
