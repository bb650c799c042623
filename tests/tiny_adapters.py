"""LoRA files with random weights for the tiny pipelines, as the peft library saves them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch

_Peft: Any = peft  # typed in part


def save_adapter(pipeline: Any, path: Path, *, seed: int, parts: Mapping[str, Sequence[str]]) -> Path:
    """Writes a folder with one adapter; the pipeline is not changed.

    Args:
        pipeline: For whose components it is.
        path: Of the folder.
        seed: Of the weights.
        parts: By the component's name, the names of its layers that it changes.
    """
    layers: dict[str, Any] = {}
    for part, names in parts.items():
        module: Any = copy.deepcopy(getattr(pipeline, part))
        module.add_adapter(_Peft.LoraConfig(r=2, lora_alpha=4, target_modules=list(names)), "new")
        state = _Peft.utils.get_peft_model_state_dict(module, adapter_name="new")
        generator = torch.Generator().manual_seed(seed)
        layers[f"{part}_lora_layers"] = {
            name: torch.randn(value.shape, generator=generator) * 0.5 for name, value in state.items()
        }
    pipeline.save_lora_weights(path, **layers)
    return path
