"""Measures what quantization does to pictures: how far they are from those of the unquantized model, seed by seed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from sixfold.core.family import LoadContext
from sixfold.core.runtime.quantization.apply import linear_shapes
from sixfold.core.runtime.quantization.modules import held_bytes
from sixfold.core.runtime.quantization.plan import LinearShape
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.core.runtime.quantization.quality import Quality, QualityProbe, read_lines
from sixfold.plugins.image.loader import modules_of, quantize_parts, read_pipeline
from sixfold.plugins.image.rules import DENOISERS

_PROMPTS = (
    "a small red circle above a large blue square on a green background",
    "a large yellow triangle on a white background",
    "two small blue circles on a black background",
    "a small green square on a red background",
)
_NUM_STEPS = 12


class ImageQuality(QualityProbe):
    """See `QualityProbe`. Inputs are prompts, one a line; prompt number i is drawn with seed i, in 12 steps."""

    def __init__(self, context: LoadContext, inputs: Path | None) -> None:
        super().__init__(context, inputs)
        torch.set_num_threads(context.num_threads)
        self._prompts = list(_PROMPTS) if inputs is None else read_lines(inputs)
        self._expected: NDArray[np.float64] | None = None

    @property
    def inputs_text(self) -> str:
        """See `QualityProbe`."""
        origin = "that come with the family" if self.inputs is None else f"of {self.inputs}"
        return f"{len(self._prompts)} prompts {origin}, {_NUM_STEPS} steps"

    def layers(self) -> Mapping[str, tuple[LinearShape, ...]]:
        """See `QualityProbe`."""
        modules = modules_of(read_pipeline(self.context))
        return {name: linear_shapes(module) for name, module in modules.items() if name in DENOISERS}

    def measure(self, policy: QuantizationPolicy | None, *, timed: bool) -> Quality:
        """See `QualityProbe`."""
        pipeline: Any = read_pipeline(self.context).to(self.context.device)
        pipeline.set_progress_bar_config(disable=True)
        modules = modules_of(pipeline)
        for module in modules.values():
            module.eval().requires_grad_(False)
        quantize_parts(modules, policy, self.context)
        began_s = time.perf_counter()
        pictures = np.concatenate([self._draw(pipeline, prompt, seed) for seed, prompt in enumerate(self._prompts)])
        seconds = time.perf_counter() - began_s
        if policy is None:
            self._expected = pictures
        assert self._expected is not None, "the first call is without a policy"
        errors = ((pictures - self._expected) ** 2).mean(axis=(1, 2, 3))
        # 100 dB stands for equal pictures: JSON has no infinity.
        psnrs = [100.0 if error < 1e-10 else -10 * math.log10(error) for error in cast("list[float]", errors.tolist())]
        figures = {"psnr_mean_db": sum(psnrs) / len(psnrs), "psnr_min_db": min(psnrs)}
        if timed:
            figures["s_per_picture"] = seconds / len(self._prompts)
        return Quality(figures=figures, weight_bytes=sum(held_bytes(module) for module in modules.values()))

    def _draw(self, pipeline: Any, prompt: str, seed: int) -> NDArray[np.float64]:
        generator = torch.Generator().manual_seed(seed)
        found: Any = pipeline(prompt, num_inference_steps=_NUM_STEPS, generator=generator, output_type="np").images
        return np.asarray(found, dtype=np.float64)
