"""Requests choose their adapters; each picture is what the stock pipeline draws with `set_adapters`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch

from sixfold.core.errors import ConfigError
from sixfold.core.source_ref import SourceRef
from sixfold.plugins.image.model import ImageModel
from sixfold.plugins.image.schema import ImageInput, LoraChoice
from tests.plugins.image.conftest import pixels
from tests.plugins.image.test_image_model import close_to, draw, error_of, result_of, stock
from tests.tiny_adapters import save_adapter
from tests.tiny_pipelines import pixart

D: Any = diffusers
Safe: Any = safetensors.torch  # typed in part
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]
Load = Callable[..., ImageModel]


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for the denoiser alone, one for the text encoder, too."""
    root = tmp_path_factory.mktemp("adapters")
    pipeline = D.StableDiffusionPipeline.from_pretrained(folder)
    parts = {"unet": ("to_q", "to_out.0"), "text_encoder": ("q_proj", "v_proj")}
    return {
        "ink": save_adapter(pipeline, root / "ink", seed=1, parts={"unet": ("to_q", "to_v")}),
        "oil": save_adapter(pipeline, root / "oil", seed=2, parts=parts),
    }


def sources(adapters: dict[str, Path]) -> dict[str, SourceRef]:
    return {name: SourceRef(source=f"file:{path}", path=path) for name, path in adapters.items()}


def chosen(*names: str, scale: float = 1.0) -> tuple[LoraChoice, ...]:
    return tuple(LoraChoice(name=name, scale=scale) for name in names)


async def test_mixed_adapters_at_once_are_each_what_the_stock_pipeline_draws_with_them(
    load_image_model: Load, folder: Path, adapters: dict[str, Path]
) -> None:
    choices = [(), chosen("ink"), chosen("oil"), chosen("oil", scale=0.5), chosen("ink", "oil"), chosen("oil"), ()]
    wanted = [
        ImageInput(prompt="a red ball", seed=index, num_inference_steps=3 + index % 2, lora=each)
        for index, each in enumerate(choices)
    ]
    wanted.append(ImageInput(prompt="sky", seed=9, num_inference_steps=3, lora=chosen("oil"), exact=True))
    found = await draw(load_image_model(lora=sources(adapters)), *wanted)
    for each, events in zip(wanted, found, strict=True):
        pipeline = stock(folder)
        for choice in each.lora:
            pipeline.load_lora_weights(adapters[choice.name], adapter_name=choice.name)
        if each.lora:
            pipeline.set_adapters([choice.name for choice in each.lora], [choice.scale for choice in each.lora])
        generator = torch.Generator().manual_seed(each.seed or 0)
        expected = pipeline(each.prompt, num_inference_steps=each.num_inference_steps, generator=generator).images[0]
        assert close_to(result_of(events).pictures[0].data, expected), each


async def test_an_adapter_changes_the_picture_and_the_model_without_it_is_as_before(
    load_image_model: Load, adapters: dict[str, Path]
) -> None:
    same: dict[str, Any] = {"prompt": "a", "seed": 1, "num_inference_steps": 3}
    (before,) = await draw(load_image_model(), ImageInput(**same))
    model = load_image_model(lora=sources(adapters))
    with_oil, without = await draw(model, ImageInput(**same, lora=chosen("oil")), ImageInput(**same))
    expected, inked, plain = (pixels(result_of(each).pictures[0].data) for each in (before, with_oil, without))
    np.testing.assert_array_equal(plain, expected)
    assert np.abs(inked - expected).max() > 8


@pytest.mark.parametrize("lora", [chosen("chalk"), chosen("ink", "ink")], ids=["unknown", "twice"])
async def test_a_wrong_choice_is_refused_with_the_name_of_the_field(
    load_image_model: Load, adapters: dict[str, Path], lora: tuple[LoraChoice, ...]
) -> None:
    (events,) = await draw(load_image_model(lora=sources(adapters)), ImageInput(prompt="a", lora=lora))
    assert error_of(events).param == "lora"


def test_files_that_fit_no_part_of_the_model_are_refused_by_name(
    load_image_model: Load, adapters: dict[str, Path], tmp_path: Path
) -> None:
    state = Safe.load_file(adapters["ink"] / "pytorch_lora_weights.safetensors")
    wrong = tmp_path / "wrong.safetensors"
    Safe.save_file({name: value.repeat(3, 3) for name, value in state.items()}, wrong)
    with pytest.raises(ConfigError, match=r"options.lora.chalk: wrong.safetensors does not fit"):
        load_image_model(lora=sources({"chalk": wrong}))
    with pytest.raises(ConfigError, match=r"options.lora.chalk: .* no .safetensors file"):
        load_image_model(lora=sources({"chalk": tmp_path / "nothing"}))
    Safe.save_file({name: value for name, value in state.items()}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"2 of them: other.safetensors, wrong.safetensors"):
        load_image_model(lora=sources({"chalk": tmp_path}))


def test_compiled_models_and_pipelines_without_a_loader_are_refused(
    load_image_model: Load, adapters: dict[str, Path]
) -> None:
    from sixfold.plugins.image.adapters import load_adapters

    with pytest.raises(ConfigError, match=r"Remove lora or compile"):
        load_image_model(lora=sources(adapters), compile=True)
    with pytest.raises(ConfigError, match=r"diffusers loads no LoRA into PixArtSigmaPipeline"):
        load_adapters(pixart().pipeline, sources(adapters))


class _ControlLoader:
    """A pipeline whose loader writes into the model's own weights, as those of control adapters do."""

    def __init__(self, unet: Any) -> None:
        self.components = {"unet": unet}

    def load_lora_weights(self, *_: Any, **__: Any) -> None:
        with torch.no_grad():
            next(self.components["unet"].parameters()).mul_(2.0)

    def get_list_adapters(self) -> dict[str, list[str]]:
        return {"unet": ["ink"]}


def test_an_adapter_that_changes_the_models_own_weights_is_refused(folder: Path, adapters: dict[str, Path]) -> None:
    from sixfold.plugins.image.adapters import load_adapters

    unet = D.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    with pytest.raises(ConfigError, match="changes the model's own weights"):
        load_adapters(_ControlLoader(unet), {"ink": sources(adapters)["ink"]})
