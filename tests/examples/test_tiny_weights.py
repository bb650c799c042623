"""The shipped weights draw and film what their cards promise, through the stock pipelines, on prompts never trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

from examples.train_tiny import evaluate_image, evaluate_video
from examples.train_tiny.check_image import check_image
from examples.train_tiny.check_video import check_video

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MAX_BYTES = 12_000_000


def load(kind: Any, name: str) -> Any:
    pipeline = kind.from_pretrained(EXAMPLES / name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", ["tiny_image", "tiny_video"])
def test_the_weights_fit_the_repository(name: str) -> None:
    assert sum(file.stat().st_size for file in (EXAMPLES / name).rglob("*.safetensors")) <= MAX_BYTES


def test_most_pictures_show_what_was_asked() -> None:
    pipeline = load(StableDiffusion3Pipeline, "tiny_image")
    prompts = evaluate_image.held_out_prompts(12)
    pictures = evaluate_image.generate(pipeline, prompts, steps=20, guidance_scale=5.0)
    wrong = [check_image(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    assert sum(map(bool, wrong)) <= 1, wrong


@pytest.mark.slow
def test_95_in_100_pictures_show_what_was_asked() -> None:
    assert evaluate_image.evaluate(EXAMPLES / "tiny_image", num_prompts=300, steps=20, guidance_scale=5.0) >= 0.95


def test_most_clips_show_what_was_asked() -> None:
    pipeline = load(LTXPipeline, "tiny_video")
    prompts = evaluate_video.held_out_prompts(4)
    clips = evaluate_video.generate(pipeline, prompts, steps=20, guidance_scale=3.0)
    wrong = [check_video(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
    assert sum(map(bool, wrong)) <= 1, wrong


@pytest.mark.slow
def test_90_in_100_clips_show_what_was_asked() -> None:
    assert evaluate_video.evaluate(EXAMPLES / "tiny_video", num_prompts=200, steps=20, guidance_scale=3.0) >= 0.90
