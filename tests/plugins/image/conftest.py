"""A tiny model folder, a loaded model, and a driver that takes a request through the batch manager."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sixfold.core.family import LoadContext
from sixfold.plugins.image.loader import load
from sixfold.plugins.image.model import ImageModel
from sixfold.plugins.image.options import ImageOptions
from tests.tiny_image_folder import save_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("stable-diffusion"))


@pytest.fixture
def load_image_model(folder: Path) -> Iterator[Callable[..., ImageModel]]:
    loaded: list[ImageModel] = []

    def load_with(**options: Any) -> ImageModel:
        given = {"max_pixels": 64 * 64, **options}
        context = LoadContext(
            model_name="m", path=folder, device="cpu", num_threads=1, options=ImageOptions.model_validate(given)
        )
        model = load(context)
        loaded.append(model)
        return model

    yield load_with
    for model in loaded:
        model.close()


def png(width: int = 32, height: int = 32, *, mode: str = "RGB", seed: int = 0, hole: bool = False) -> bytes:
    """A picture of noise; ``hole`` makes its left half transparent."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    if hole:
        image = image.convert("RGBA")
        image.paste((0, 0, 0, 0), (0, 0, width // 2, height))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def pixels(data: bytes) -> NDArray[np.int64]:
    """Of an encoded picture."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int64)
