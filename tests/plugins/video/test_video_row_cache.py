"""First-block caching of clips: each row of a batch decides for itself, as diffusers' own cache does for a clip alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from examples.train_tiny.check_video import check_video
from examples.train_tiny.clips import NUM_FRAMES
from examples.train_tiny.evaluate_video import held_out_prompts
from sixfold.core.errors import ConfigError, InvalidRequest
from sixfold.core.family import LoadContext
from sixfold.core.messages import Finished
from sixfold.plugins.video import model as video_model
from sixfold.plugins.video.loader import load
from sixfold.plugins.video.messages import VideoInput
from sixfold.plugins.video.options import VideoOptions
from sixfold.plugins.video.planning import plan
from sixfold.plugins.video.schema import CreateBody
from tests.core.rendezvous.harness import hold_first_step
from tests.plugins.video.conftest import Load, clip
from tests.plugins.video.test_video_equality import alone, last_event, serving, submit, videos
from tests.plugins.video.test_video_planning import CAN

__all__ = ["videos"]  # a fixture
D: Any = diffusers
TINY_VIDEO = Path(__file__).resolve().parents[3] / "examples" / "tiny_video"


@pytest.mark.parametrize(("name", "threshold"), [("wan", 0.4), ("ltx", 0.4)])
async def test_cached_clips_of_a_mixed_batch_are_those_of_diffusers_own_cache_alone(
    name: str, threshold: float, load_tiny: Load, folder: Callable[[str], Path], videos: dict[int, torch.Tensor]
) -> None:
    model = load_tiny(name)
    wanted = [
        clip(
            f"{seed} red balls",
            seed=seed,
            num_inference_steps=8 + seed % 2,
            guidance_scale=(1.0, 4.0)[seed % 2],
            row_cache_threshold=threshold if seed else None,
        )
        for seed in range(4)
    ]
    hold_first_step(model, until_prepared=4)
    async with serving(model) as replica:
        streams = [submit(replica, each) for each in wanted]
        for stream in streams:
            assert isinstance(await last_event(stream), Finished)
        assert model.num_calls > model.num_forwards, "nothing shared a forward"
        assert model.stats()["video_row_cache_hits_total"] > 0
        assert model.stats()["video_row_cache_bytes"] == 0  # all given back
    for each in wanted:
        pipeline = D.DiffusionPipeline.from_pretrained(str(folder(name)))
        pipeline.set_progress_bar_config(disable=True)
        uncached = alone(pipeline, each, name)
        if each.row_cache_threshold is None:
            assert (videos[each.seed] - uncached).abs().max() <= 1e-5
            continue
        pipeline.transformer.enable_cache(D.FirstBlockCacheConfig(threshold=threshold))
        cached = alone(pipeline, each, name)
        assert (videos[each.seed] - cached).abs().max() <= 1e-5, each.seed
        assert (uncached - cached).abs().max() > 1e-3, "the cache skipped nothing"


async def test_the_tiny_model_films_what_was_asked_with_a_quarter_of_its_steps_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[int, Any] = {}
    to_frames = video_model.to_frames

    def note(video: torch.Tensor) -> Any:
        frames = to_frames(video)
        seen[len(seen)] = frames
        return frames

    monkeypatch.setattr(video_model, "to_frames", note)
    model = load(
        LoadContext(
            model_name="m", path=TINY_VIDEO, device="cpu", num_threads=2, options=VideoOptions(row_cache_threshold=0.1)
        )
    )
    prompts = held_out_prompts(4)
    wanted = [film(prompt, seed) for seed, prompt in enumerate(prompts)]
    async with serving(model) as replica:
        for each in wanted:
            assert isinstance(await last_event(submit(replica, each)), Finished)
        hits = model.stats()["video_row_cache_hits_total"]
    assert hits >= 4 * 20 / 4
    wrong = [check_video(np.asarray(seen[index]), prompt) for index, prompt in enumerate(prompts)]
    assert sum(map(bool, wrong)) <= 1, wrong  # as without a cache: tests/examples/test_tiny_weights.py


def film(prompt: str, seed: int) -> VideoInput:
    return VideoInput(
        prompt=prompt,
        width=64,
        height=64,
        num_frames=NUM_FRAMES,
        fps=8,
        num_inference_steps=20,
        guidance_scale=3.0,
        seed=seed,
        row_cache_threshold=0.1,
    )


def test_the_threshold_is_the_models_unless_the_request_says_another() -> None:
    def planned(default: float, **fields: Any) -> float | None:
        body = CreateBody.model_validate({"prompt": "a", **fields})
        return plan(body, dataclasses.replace(CAN, row_cache_threshold=default), reference=None).row_cache_threshold

    assert planned(-1.0) is None
    assert planned(0.08) == 0.08
    assert planned(0.08, row_cache_threshold=0.2) == 0.2
    assert planned(0.08, row_cache_threshold=-1) is None


def no_blocks(_module: Any) -> list[Any]:
    return []


def test_a_pipeline_whose_blocks_can_not_be_cached_refuses_the_field_and_the_option(
    load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = CreateBody.model_validate({"prompt": "a", "row_cache_threshold": 0.1})
    with pytest.raises(InvalidRequest, match="can't be cached") as refused:
        plan(body, dataclasses.replace(CAN, row_cache=False), reference=None)
    assert refused.value.param == "row_cache_threshold"
    monkeypatch.setattr("sixfold.plugins.video.loader.transformer_blocks", no_blocks)
    with pytest.raises(ConfigError, match="WanPipeline's blocks can't be cached"):
        load_tiny("wan", row_cache_threshold=0.1)
