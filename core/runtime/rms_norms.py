"""Recognises plain RMS norms by what they compute, and replaces them by one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sixfold.core.runtime import kernels


class OneCallRMSNorm(nn.Module):
    """RMS norm by one kernel: this project's for bfloat16 on a CPU, else torch's own.

    Args:
        weight: [dim].
        eps: Added to the mean square.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.eps = eps
        self._wide = weight.detach().float() if kernels.can_run(weight.device, weight.dtype) else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same."""
        if self._wide is None or x.dtype is not torch.bfloat16:
            return torch.rms_norm(x, self.weight.shape, self.weight, self.eps)
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        return kernels.rms_norm(rows, self._wide, self.eps).view(x.shape)


def plain_rms_norm(module: nn.Module) -> tuple[Tensor, float] | None:
    """The weight (float32) and epsilon of a module that turns out to compute a plain RMS norm.

    Whether it does is not guessed from its class: it is run beside the formula on random numbers. So a norm that adds
    one to its weight is none.
    """
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(eps, float):
        return None
    if not isinstance(weight, Tensor) or weight.dim() != 1 or next(module.children(), None) is not None:
        return None
    generator = torch.Generator(device=weight.device).manual_seed(0)
    x = torch.randn(4, len(weight), generator=generator, device=weight.device).to(weight.dtype)
    tolerance = 1e-5 if weight.dtype is torch.float32 else 2e-2
    with torch.inference_mode():
        expected = torch.rms_norm(x.float(), weight.shape, weight.float(), eps)
        same = torch.allclose(module(x).float(), expected, rtol=tolerance, atol=tolerance)
    return (weight.detach().float(), eps) if same else None


def replace_rms_norms(model: nn.Module) -> int:
    """Replaces modules that compute a plain RMS norm; returns how many."""
    num_replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            found = None if isinstance(child, OneCallRMSNorm) else plain_rms_norm(child)
            if found is not None:
                weight, eps = found
                stock: Any = child
                setattr(parent, name, OneCallRMSNorm(weight.to(stock.weight.dtype), eps))
                num_replaced += 1
    return num_replaced
