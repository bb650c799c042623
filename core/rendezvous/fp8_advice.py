"""Says where fp8 makes a denoiser slower, as far as it was measured: rounding the inputs may cost more than the products save."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sixfold.core.runtime.quantization.policy import QuantizationPolicy


def fp8_advice(
    policy: QuantizationPolicy | None, denoisers: Iterable[torch.nn.Module], *, compiles: bool
) -> str | None:
    """One sentence for the operator; None where nothing is known against it.

    Figures: one H200, random weights, ``bench/results/2026-11-29-optimisations.md``.

    Args:
        policy: Of the model.
        denoisers: What it is applied to.
        compiles: Whether their blocks are compiled.
    """
    if policy is None or policy.scheme != "fp8" or policy.what != "weights+activations":
        return None
    if not compiles:
        return (
            "fp8 without options.compile ran at 0.43 to 0.81 of the speed of bfloat16 (SDXL, Flux, Wan on an H200): it "
            "saves memory alone. Set compile: true, which joins the rounding to what stands before it."
        )
    if any(type(module).__name__.startswith("UNet") for module in denoisers):
        return (
            "fp8 ran at 0.83 to 0.92 of the speed of bfloat16 on SDXL's U-Net (an H200, both compiled): its products are "
            "too small. It pays for transformers of billions (1.33 to 1.40 on Flux); here it saves memory alone."
        )
    return None
