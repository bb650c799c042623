"""Loads an operator's LoRA adapters into a pipeline, all beside each other, so that each request may choose its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sixfold.core.errors import ConfigError
from sixfold.core.rendezvous.adapters import AdapterSwitch, adapted_layers
from sixfold.core.source_ref import SourceRef

_STANDARD_NAME = "pytorch_lora_weights.safetensors"


def load_adapters(pipeline: Any, sources: Mapping[str, SourceRef]) -> dict[int, AdapterSwitch]:
    """Loads each adapter under its name; the switches of the modules that have any, by the identity of the module.

    Raises:
        ConfigError: The pipeline takes none, or the files are none that can be switched on and off.
    """
    if not sources:
        return {}
    if not hasattr(pipeline, "load_lora_weights"):
        raise ConfigError(f"options.lora: diffusers loads no LoRA into {type(pipeline).__name__}. Remove lora.")
    for name, source in sources.items():
        _load(pipeline, name, source.local_path)
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return {id(module): AdapterSwitch(layers) for module in modules if (layers := adapted_layers(module))}


def _load(pipeline: Any, name: str, path: Path) -> None:
    folder, file = _weights_file(name, path)
    before = _own_weights(pipeline)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is wanted
            pipeline.load_lora_weights(
                str(folder), weight_name=file, adapter_name=name, use_safetensors=True, local_files_only=True
            )
    except ImportError as error:
        raise ConfigError('options.lora needs the peft library: pip install "sixfold[image]".') from error
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"options.lora.{name}: {file} does not fit this model: {error}") from error
    if not any(name in names for names in pipeline.get_list_adapters().values()):
        raise ConfigError(f"options.lora.{name}: {file} holds no weights for {type(pipeline).__name__}.")
    if _own_weights(pipeline) != before:
        raise ConfigError(
            f"options.lora.{name}: {file} changes the model's own weights (as control adapters do), so no request could "
            "do without it. Merge it into the model, or remove it."
        )


def _weights_file(name: str, path: Path) -> tuple[Path, str]:
    if path.is_file():
        return path.parent, path.name
    found = sorted(file.name for file in path.glob("*.safetensors"))
    if _STANDARD_NAME in found:
        return path, _STANDARD_NAME
    if len(found) != 1:
        what = "no .safetensors file" if not found else f"{len(found)} of them: {', '.join(found[:5])}"
        raise ConfigError(
            f"options.lora.{name}: its source must hold one .safetensors file; it has {what}. Name the file."
        )
    return path, found[0]


def _own_weights(pipeline: Any) -> dict[str, tuple[int, int]]:
    """Where the pipeline's own weights are, and how often they were written; adapters only add others."""
    return {
        f"{part}.{name.replace('.base_layer', '')}": (parameter.data_ptr(), parameter._version)
        for part, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module)
        for name, parameter in module.named_parameters()
        if ".lora_" not in name
    }
