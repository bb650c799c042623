"""Who asks for fp8 where it was measured to be slower is told so, with the figures and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sixfold.core.rendezvous.fp8_advice import fp8_advice
from sixfold.core.runtime.quantization.policy import QuantizationPolicy


class UNet2DConditionModel(torch.nn.Module):
    """Known by its name."""


class FluxTransformer2DModel(torch.nn.Module):
    """Likewise."""


UNET, TRANSFORMER = {"unet": UNet2DConditionModel()}, {"transformer": FluxTransformer2DModel()}
FP8 = {"scheme": "fp8", "what": "weights+activations"}


@pytest.mark.parametrize(
    ("policy", "denoisers", "compiles", "said"),
    [
        (FP8, TRANSFORMER, False, "Set compile: true"),
        (FP8, UNET, False, "Set compile: true"),
        (FP8, UNET, True, "0.83 to 0.92 of the speed of bfloat16"),
        (FP8, TRANSFORMER, True, None),
        (FP8 | {"components": {"transformer": None}}, TRANSFORMER, False, None),
        ({"scheme": "int8", "components": {"unet": FP8}}, UNET, False, "Set compile: true"),
        ({"scheme": "int8"}, UNET, False, None),
        (None, UNET, False, None),
    ],
)
def test_where_it_was_slower(
    policy: Any, denoisers: dict[str, torch.nn.Module], compiles: bool, said: str | None
) -> None:
    chosen = None if policy is None else QuantizationPolicy.model_validate(policy)
    advice = fp8_advice(chosen, denoisers, compiles=compiles)
    assert advice is None if said is None else advice is not None and said in advice


def test_what_can_not_be_compiled_is_not_told_to() -> None:
    advice = fp8_advice(QuantizationPolicy.model_validate(FP8), UNET, compiles=False, can_compile=False)
    assert advice is not None and advice.endswith("it saves memory alone.")
