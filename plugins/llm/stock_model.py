"""Reads models of transformers as they are, before the native runtime changes them. Imported in worker processes only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from sixfold.core.errors import SourceError
from sixfold.plugins.llm.optimization import has_other_parts

# These are typed in part; their types are what this project says.
_CONFIGS: Any = AutoConfig
_MODELS: Any = AutoModelForCausalLM
_IMAGE_MODELS: Any = AutoModelForImageTextToText


def choose_dtype(option: str, device: torch.device) -> torch.dtype:
    """The type for weights and cache; ``auto`` takes bfloat16 only where the hardware multiplies it."""
    if option != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[option]
    if device.type == "cpu":
        cpu: Any = torch.cpu  # the questions are private, and asked by torch's own compiler
        native = bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    else:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def read_files(read: Callable[[], Any], what: str) -> Any:
    """Runs a function of transformers that reads a model's files.

    Raises:
        SourceError: It can't.
    """
    try:
        return read()
    except (OSError, ValueError, KeyError, ImportError) as error:  # what transformers raises for bad folders
        raise SourceError(
            f"The model's {what} can't be read: {error}. Pull the model again or choose another."
        ) from error


def read_model(path: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The stock model of a folder, in evaluation mode."""
    config = _CONFIGS.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    kind = _IMAGE_MODELS if hasattr(config, "vision_config") else _MODELS
    model = kind.from_pretrained(path, config=config, dtype=dtype, local_files_only=True, trust_remote_code=False)
    return model.to(device).eval()


def set_attention(model: Any, name: str) -> None:
    """For the decoder alone: a vision tower keeps its own."""
    model.set_attn_implementation({"text_config": name} if has_other_parts(model) else name)
