"""What a body becomes, and what is refused instead."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sixfold.core.errors import InvalidRequest
from sixfold.core.family import ModelFiles
from sixfold.plugins.video.capabilities import Capabilities
from sixfold.plugins.video.planning import plan, seconds_text
from sixfold.plugins.video.plugin import detect
from sixfold.plugins.video.schema import CreateBody

CAN = Capabilities(
    width=832,
    height=480,
    num_frames=81,
    fps=16,
    num_inference_steps=50,
    guidance_scale=5.0,
    size_multiple=16,
    frames_multiple=4,
    max_pixels=1280 * 720,
    max_frames=161,
    max_steps=60,
    max_prompt_characters=100,
    keep_s=60.0,
    image="optional",
    negative_prompt="guided",
    row_cache=True,
    row_cache_threshold=-1.0,
    dtype="float32",
    pipeline="WanPipeline",
    codec="h264",
)


def planned(can: Capabilities = CAN, reference: bytes | None = None, **fields: Any) -> Any:
    return plan(CreateBody.model_validate({"prompt": "a dog", **fields}), can, reference=reference)


def test_the_models_defaults_fill_what_the_client_left_out() -> None:
    wanted = planned()
    assert (wanted.width, wanted.height, wanted.num_frames, wanted.fps) == (832, 480, 81, 16)
    assert (wanted.num_inference_steps, wanted.guidance_scale) == (50, 5.0)
    assert planned().seed != planned().seed


@pytest.mark.parametrize(
    ("fields", "frames", "text"),
    [
        ({"seconds": "4"}, 65, "4"),
        ({"seconds": 4}, 65, "4"),
        ({"seconds": "2.5", "fps": 24}, 61, "2.5"),
        ({"num_frames": 17}, 17, "1.0625"),
        ({"num_frames": 1}, 1, "0.0625"),
        ({"seconds": "0.01"}, 1, "0.01"),
        ({}, 81, "5.0625"),
    ],
)
def test_seconds_become_the_nearest_possible_number_of_frames(fields: dict[str, Any], frames: int, text: str) -> None:
    wanted = planned(**fields)
    assert wanted.num_frames == frames
    assert seconds_text(wanted, CreateBody.model_validate({"prompt": "a", **fields}).seconds) == text


def test_a_model_of_any_number_of_frames_takes_any() -> None:
    assert planned(dataclasses.replace(CAN, frames_multiple=1), num_frames=16).num_frames == 16


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"size": "830x480"}, "size", "832x480"),
        ({"size": "1280x736"}, "size", "921600"),
        ({"size": "480"}, "size", "832x480"),
        ({"size": "0x480"}, "size", "is no size"),
        ({"num_frames": 80}, "num_frames", "81"),
        ({"num_frames": 165}, "num_frames", "161"),
        ({"seconds": "60"}, "seconds", "161"),
        ({"seconds": "4", "num_frames": 65}, "num_frames", "not both"),
        ({"num_inference_steps": 61}, "num_inference_steps", "60"),
        ({"prompt": "x" * 101}, "prompt", "100"),
        ({"prompt": " \n"}, "prompt", "empty"),
        ({"negative_prompt": "blur", "guidance_scale": 1.0}, "negative_prompt", "more than 1"),
    ],
)
def test_what_the_model_cannot_do_is_refused_with_what_it_can(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        planned(**fields)
    assert refusal.value.param == param
    assert says in refusal.value.message


def test_a_reference_is_taken_by_models_that_start_from_one() -> None:
    assert planned(reference=b"image").reference == b"image"
    with pytest.raises(InvalidRequest, match="from text alone"):
        planned(dataclasses.replace(CAN, image="no"), reference=b"image")
    with pytest.raises(InvalidRequest, match="starts from an image"):
        planned(dataclasses.replace(CAN, image="required"))


def test_a_negative_prompt_is_never_ignored() -> None:
    assert planned(negative_prompt="blur").negative_prompt == "blur"
    assert planned(negative_prompt="").negative_prompt is None
    with pytest.raises(InvalidRequest, match="does not use one"):
        planned(dataclasses.replace(CAN, negative_prompt="never"), negative_prompt="blur")


def test_capabilities_cross_the_process_border() -> None:
    assert Capabilities.of(CAN.details()) == CAN


@pytest.mark.parametrize(
    ("index", "confidence"),
    [
        ({"_class_name": "WanPipeline"}, 90),
        ({"_class_name": "LTXImageToVideoPipeline"}, 90),
        ({"_class_name": "HunyuanVideoPipeline"}, 90),
        ({"_class_name": "OtherPipeline", "transformer": ["diffusers", "OtherTransformer3DModel"]}, 70),
        ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}, 0),
        ({"_class_name": "HunyuanDiTPipeline"}, 0),
        ({}, 0),
    ],
)
def test_a_folder_is_known_by_its_index(tmp_path: Any, index: dict[str, Any], confidence: int) -> None:
    import json

    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert detect(ModelFiles(tmp_path)) == confidence
