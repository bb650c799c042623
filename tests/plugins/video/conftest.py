"""Tiny pipelines as served models, and what runs them."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import av
import diffusers
import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sixfold.core.family import LoadContext
from sixfold.plugins.video.loader import load
from sixfold.plugins.video.messages import VideoInput
from sixfold.plugins.video.model import VideoModel
from sixfold.plugins.video.options import VideoOptions
from tests.plugins.video import tiny_pipelines

Folder = Callable[[str], Path]
Load = Callable[..., VideoModel]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The saved folder of a tiny pipeline."""
    root = tmp_path_factory.mktemp("pipelines")

    @cache
    def save(name: str) -> Path:
        return tiny_pipelines.save(name, root / name)

    return save


@pytest.fixture(scope="session")
def stock(folder: Folder) -> Callable[[str], Any]:
    """The stock pipeline of a folder, as a user of diffusers loads it."""

    @cache
    def read(name: str) -> Any:
        pipeline = cast(Any, diffusers).DiffusionPipeline.from_pretrained(str(folder(name)))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return read


@pytest.fixture
def load_tiny(folder: Folder) -> Load:
    """Loads a tiny pipeline as a worker does; options by name."""

    def load_it(name: str, **options: Any) -> VideoModel:
        torch.set_num_threads(1)
        context = LoadContext(
            model_name="tiny",
            path=folder(name),
            device="cpu",
            num_threads=1,
            options=VideoOptions.model_validate(
                {"default_width": 32, "default_height": 32, "default_frames": 9, **options}
            ),
        )
        return load(context)

    return load_it


def decode(data: bytes) -> tuple[NDArray[np.uint8], Any]:
    """All frames of a file as [frames, height, width, 3], and its video stream's facts, read by PyAV."""
    container: Any
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        facts = {
            "fps": float(stream.average_rate),
            "seconds": container.duration / 1e6,
            "codec": stream.codec_context.name,
            "pix_fmt": stream.codec_context.pix_fmt,
            "colorspace": stream.codec_context.colorspace,
        }
    return np.stack(frames), facts


def clip(prompt: str = "a red ball moves right", **changes: Any) -> VideoInput:
    """A small request."""
    wanted = VideoInput(
        prompt=prompt,
        width=32,
        height=32,
        num_frames=9,
        fps=8,
        num_inference_steps=4,
        guidance_scale=4.0,
        seed=1,
    )
    return msgspec.structs.replace(wanted, **changes)
