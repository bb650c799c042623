"""A video denoiser with fewer bits is smaller, and computes nearly the same; its conditioning keeps its type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sixfold.core.errors import ConfigError
from sixfold.core.family import LoadContext
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.quantized_linear import QuantizedLinear
from sixfold.core.runtime.quantized_matmul import has_byte_products
from sixfold.plugins.video.loader import load
from sixfold.plugins.video.options import VideoOptions

pytestmark = pytest.mark.skipif(not has_byte_products(), reason="this CPU has no AVX512-VNNI or -BF16")


def test_the_blocks_are_quantized_and_what_conditions_them_is_not(folder: Callable[[str], Path]) -> None:
    stock = LoadContext(
        model_name="m",
        path=folder("wan"),
        device="cpu",
        num_threads=1,
        options=VideoOptions.model_validate({"default_width": 32, "default_height": 32, "default_frames": 9}),
    )
    plain = load(stock)
    model = load(replace(stock, quantization=QuantizationPolicy(scheme="int8")))
    pipeline: Any = getattr(model, "_pipeline")  # noqa: B009 - what is loaded shows nowhere else
    names = {name for name, module in pipeline.transformer.named_modules() if isinstance(module, QuantizedLinear)}
    assert names
    assert all(name.startswith("blocks.") for name in names)
    assert str(model.info.details["quantization"]).startswith(f"int8 weights: {len(names)} of ")
    assert (model.info.memory_bytes or 0) < (plain.info.memory_bytes or 0)
    assert model.info.parameters == plain.info.parameters
    torch.default_generator.manual_seed(0)
    x = torch.randn(1, 7, pipeline.transformer.blocks[0].attn1.to_q.in_features)
    theirs: Any = getattr(plain, "_pipeline")  # noqa: B009
    with torch.inference_mode():
        expected, found = (each.transformer.blocks[0].attn1.to_q(x) for each in (theirs, pipeline))
    assert (found - expected).norm() / expected.norm() < 0.02
    with pytest.raises(ConfigError, match=r"components\.transformr: the model has no such part"):
        load(replace(stock, quantization=QuantizationPolicy(scheme="int8", components={"transformr": None})))
