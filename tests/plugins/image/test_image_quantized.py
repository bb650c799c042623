"""The model that ships with the repository draws as well with fewer bits: judged by the check of its pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from examples.train_tiny.check_image import check_image
from examples.train_tiny.evaluate_image import generate, held_out_prompts
from sixfold.core.errors import ConfigError
from sixfold.core.family import LoadContext
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.quantized_matmul import has_byte_products
from sixfold.plugins.image.loader import load, modules_of, quantize_parts
from sixfold.plugins.image.options import ImageOptions
from sixfold.plugins.image.quality import ImageQuality

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "tiny_image"
D: Any = diffusers
pytestmark = [
    pytest.mark.skipif(not has_byte_products(), reason="this CPU has no AVX512-VNNI or -BF16"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def context(policy: object = None, **options: Any) -> LoadContext:
    chosen = None if policy is None else QuantizationPolicy.model_validate(policy)
    return LoadContext(
        model_name="m", path=FOLDER, device="cpu", num_threads=1, options=ImageOptions(**options), quantization=chosen
    )


def num_right(policy: object, num_prompts: int) -> int:
    pipeline = D.DiffusionPipeline.from_pretrained(str(FOLDER))
    pipeline.set_progress_bar_config(disable=True)
    quantize_parts(modules_of(pipeline), context(policy).quantization, context())
    prompts = held_out_prompts(num_prompts)
    pictures = generate(pipeline, prompts, steps=10, guidance_scale=5.0)
    return sum(not check_image(picture, prompt) for prompt, picture in zip(prompts, pictures, strict=True))


def test_as_many_pictures_are_right_with_8_bits_as_without() -> None:
    stock = num_right(None, 6)
    assert stock >= 4
    assert num_right({"scheme": "int8", "what": "weights+activations"}, 6) >= stock


def test_what_conditions_the_denoiser_and_the_other_parts_keep_their_type() -> None:
    model = load(context({"scheme": "int8"}))
    stock = load(context())
    try:
        assert str(model.info.details["quantization"]).startswith("int8 weights: ")
        assert model.info.memory_bytes is not None
        assert stock.info.memory_bytes is not None
        assert model.info.memory_bytes < 0.8 * stock.info.memory_bytes
        assert model.info.parameters == stock.info.parameters
    finally:
        model.close()
        stock.close()


def test_another_part_is_quantized_only_if_it_is_named() -> None:
    pipeline = D.DiffusionPipeline.from_pretrained(str(FOLDER))
    modules = modules_of(pipeline)
    name = next(name for name in modules if name.startswith("text_encoder"))
    alone = QuantizationPolicy.model_validate(
        {"scheme": "int8", "components": {"transformer": None, name: {"skip": []}}}
    )
    before = sum(p.numel() for p in modules["transformer"].parameters())
    assert quantize_parts(modules, alone, context()).startswith("int8 weights: ")
    assert sum(p.numel() for p in modules["transformer"].parameters()) == before


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"components\.transformr: the model has no such part\. .*'transformer'"):
        load(context({"scheme": "int8", "components": {"transformr": None}}))
    with pytest.raises(ConfigError, match="can't be compiled"):
        load(context({"scheme": "int8"}, compile=True))


def test_the_report_compares_pictures_seed_by_seed(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    (tmp_path / "prompts").write_text("a large yellow triangle on a white background\n")
    probe = ImageQuality(context(), tmp_path / "prompts")
    assert probe.inputs_text.startswith("1 prompts of ")
    assert set(probe.layers()) == {"transformer"}
    assert probe.measure(None, timed=False).figures == {"psnr_mean_db": 100.0, "psnr_min_db": 100.0}
    found = probe.measure(QuantizationPolicy(scheme="int8"), timed=True).figures
    assert 30 < found["psnr_min_db"] < 100
    assert found["s_per_picture"] > 0
