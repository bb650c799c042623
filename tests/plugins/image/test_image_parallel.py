"""Pictures over HTTP whose guidance two processes compute."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import httpx
import numpy as np
import pytest
from PIL import Image

from sixfold.plugins.image.drawing import generator_for
from tests.servers import DemoServer, serving

OPTIONS = {"max_pixels": 4096}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    root = tmp_path_factory.mktemp("parallel")
    entry = {"source": f"file:{folder}", "options": OPTIONS}
    models = {
        "guidance": {**entry, "parallel": {"cfg": 2}},
        "tokens": {**entry, "parallel": {"context": 2}},
    }
    with serving(root, models) as server:
        yield server


def test_a_picture_of_two_ranks_is_the_librarys(server: DemoServer, folder: Path) -> None:
    untyped: Any = diffusers
    stock = untyped.StableDiffusionPipeline.from_pretrained(folder)
    wanted = {"num_inference_steps": 3, "guidance_scale": 5.0}
    expected = stock("a red ball", width=32, height=32, generator=generator_for(5), **wanted).images[0]
    body = {"model": "guidance", "prompt": "a red ball", "size": "32x32", "seed": 5, **wanted}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60.0).raise_for_status().json()
    actual = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    difference = np.abs(np.asarray(expected).astype(int) - np.asarray(actual).astype(int))
    assert difference.max() <= 1


def test_tokens_of_a_unet_are_not_split_and_the_log_says_what_to_do(server: DemoServer) -> None:
    answer = httpx.post(f"{server.url}/v1/images/generations", json={"model": "tokens", "prompt": "x"}, timeout=60.0)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_failed")
    assert "not known how to split UNet2DConditionModel (unet). Use 'cfg' to divide its rows" in server.log
