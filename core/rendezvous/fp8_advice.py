"""Says where fp8 makes a denoiser slower, as far as it was measured: rounding the inputs may cost more than the products save.

Figures: one H200, random weights, ``bench/results/2026-11-29-optimisations.md``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from sixfold.core.family import LoadContext
from sixfold.core.runtime.quantization.policy import QuantizationPolicy

_LOG = logging.getLogger(__name__)


def warn_of_slow_fp8(context: LoadContext, denoisers: Mapping[str, torch.nn.Module], compiles: bool) -> None:
    """Tells the operator of an entry; see `fp8_advice`."""
    advice = fp8_advice(context.quantization, denoisers, compiles=compiles, can_compile=context.parallel is None)
    if advice is not None:
        _LOG.warning("models.%s.quantization: %s", context.model_name, advice)


def fp8_advice(
    policy: QuantizationPolicy | None,
    denoisers: Mapping[str, torch.nn.Module],
    *,
    compiles: bool,
    can_compile: bool = True,
) -> str | None:
    """A sentence or two for the operator; None where nothing is known against it.

    Args:
        policy: Of the model.
        denoisers: By the names of their components.
        compiles: Whether their blocks are compiled.
        can_compile: Whether they could be.
    """
    in_fp8 = [module for name, module in denoisers.items() if _is_fp8(policy, name)]
    if in_fp8 and not compiles:
        return (
            "fp8 that is not compiled ran at 0.43 to 0.81 of the speed of bfloat16 (SDXL, Flux, Wan on an H200): it saves "
            "memory alone."
        ) + (" Set compile: true, which joins the rounding to what stands before it." if can_compile else "")
    if any(type(module).__name__.startswith("UNet") for module in in_fp8):
        return (
            "fp8 ran at 0.83 to 0.92 of the speed of bfloat16 on SDXL's U-Net (an H200, both compiled): its products are "
            "too small. It pays for transformers of billions (1.33 to 1.40 on Flux); here it saves memory alone."
        )
    return None


def _is_fp8(policy: QuantizationPolicy | None, name: str) -> bool:
    own = None if policy is None else policy.of(name)
    return own is not None and own.scheme == "fp8" and own.what == "weights+activations"
