"""Random LoRA adapters in PEFT's format, and stock models into which they were merged by hand: the oracle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

# Typed in part.
_MODELS: Any = transformers.AutoModelForCausalLM
SAFETENSORS: Any = safetensors.torch


def stock_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model as transformers loads it."""
    return _MODELS.from_pretrained(folder, dtype=dtype).eval()


def write_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int,
    targets: tuple[str, ...] = ATTENTION + MLP,
    rank: int = 4,
    strength: float = 0.3,
    layers: str = r".*",
    **config: Any,
) -> Path:
    """Saves a random adapter for all layers of a model whose last name is among ``targets``."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = config.get("rank_pattern", {})
    for name, module in stock_model(base).named_modules():
        if name.rpartition(".")[2] in targets and re.fullmatch(layers, name):
            num_in, num_out = _features(module)
            own = next((r for key, r in ranks.items() if re.match(rf"(.*\.)?({key})$", name)), rank)
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(own, num_in, generator=generator) * strength
            tensors[f"{key}.lora_B.weight"] = torch.randn(num_out, own, generator=generator) * strength
    SAFETENSORS.save_file(tensors, folder / "adapter_model.safetensors")
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets)} | config
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder


def merged_model(base: Path, adapter: Path) -> Any:
    """The stock model with an adapter's products added to its weights, by PEFT's documented formulas."""
    model = stock_model(base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = SAFETENSORS.load_file(adapter / "adapter_model.safetensors")
    for key, down in tensors.items():
        if not key.endswith("lora_A.weight"):
            continue
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        up = tensors[key.replace("lora_A", "lora_B")]
        alphas: dict[str, float] = config.get("alpha_pattern", {})
        alpha = next((a for k, a in alphas.items() if re.match(rf"(.*\.)?({k})$", name)), config["lora_alpha"])
        scale = alpha / (len(down) ** 0.5 if config.get("use_rslora") else len(down))
        module = model.get_submodule(name)
        delta = scale * up @ down
        with torch.no_grad():
            module.weight += delta.T if isinstance(module, Conv1D) else delta
    return model


def _features(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        num_in, num_out = module.weight.shape
        return num_in, num_out
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features
