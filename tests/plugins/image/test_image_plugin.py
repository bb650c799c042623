"""What the plugin registers, and which folders it takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sixfold.core.errors import InvalidRequest
from sixfold.core.family import ModelFiles
from sixfold.core.plugins import load_plugins
from sixfold.plugins.image.plugin import detect
from sixfold.plugins.image.sizes import SizeRules


def test_the_family_and_the_api_are_registered() -> None:
    plugins = load_plugins()
    assert plugins.families["image/diffusers"].operations == {"generate", "edit", "vary"}
    assert "image" in plugins.apis


@pytest.mark.parametrize(
    ("name", "sure"),
    [
        ("StableDiffusionXLPipeline", 90),
        ("FluxPipeline", 90),
        ("QwenImagePipeline", 90),
        ("WanPipeline", 0),
        ("HunyuanVideoPipeline", 0),
        ("StableAudioPipeline", 0),
        (None, 0),
        (7, 0),
    ],
)
def test_pipelines_of_images_are_recognised(tmp_path: Path, name: object, sure: int) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name} if name is not None else {}))
    assert detect(ModelFiles(tmp_path)) == sure


def test_a_folder_without_a_pipeline_is_not_recognised(tmp_path: Path) -> None:
    assert detect(ModelFiles(tmp_path)) == 0


RULES = SizeRules(default=(1024, 512), multiple=16, max_pixels=1024 * 1024)


def test_sizes_are_taken_as_they_are_or_refused() -> None:
    assert RULES.parse(None) == (1024, 512)
    assert RULES.parse("64x1024") == (64, 1024)
    for bad in ("100x100", "2048x1024", "0x16", "16X16", "16x", "-16x16", "1e3x16", "9999999x16"):
        with pytest.raises(InvalidRequest) as failure:
            RULES.parse(bad)
        assert failure.value.param == "size"


def test_an_input_image_is_fitted_without_being_stretched_much() -> None:
    assert RULES.fit(500, 300) == (496, 288)
    assert RULES.fit(4000, 1000) == (2048, 512)
    assert RULES.fit(3, 3) == (16, 16)
