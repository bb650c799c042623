"""Reads LoRA adapters as PEFT saves them: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import regex
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sixfold.core.errors import ConfigError
from sixfold.plugins.llm.lora_adapter import Adapter, LowRank, ModuleShape

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
_READ_BYTES = 1 << 20
_PATTERN_TIMEOUT_S = 1.0
"""Of one pattern on one name: the patterns are those of whoever made the adapter, and some never end."""

# Typed in part, and not at all.
_SAFE_OPEN: Any = safe_open
_REGEX: Any = regex

# Settings under which PEFT computes something else than the plain sum: what they mean, for the refusal.
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "modules_to_save": "whole modules of its own (modules_to_save)",
    "lora_bias": "biases of its own (lora_bias)",
    "trainable_token_indices": "token embeddings of its own (trainable_token_indices)",
    "target_parameters": "parameters that are no layers (target_parameters)",
    "layer_replication": "repeated layers (layer_replication)",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "arrow_config": "a router over several adapters (Arrow)",
}
_INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")


class PeftConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of ``adapter_config.json`` beside the settings that are refused."""

    peft_type: str
    lora_alpha: float
    use_rslora: bool = False
    alpha_pattern: dict[str, float] = {}
    bias: str = "none"
    init_lora_weights: bool | str = True

    def scale(self, layer: str, rank: int) -> float:
        """The factor of a layer's product: alpha by rank, or by its root (rsLoRA).

        A pattern belongs to a layer whose name ends with a match of it, from a dot on; the first that does counts.
        """
        own = (value for key, value in self.alpha_pattern.items() if _names(key, layer))
        alpha = next(own, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_adapter(
    folder: Path,
    *,
    name: str,
    shapes: Mapping[str, ModuleShape],
    max_rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Adapter:
    """Reads and checks an adapter.

    Args:
        folder: As PEFT's ``save_pretrained`` wrote it.
        name: What clients will ask for.
        shapes: The layers that can have adapters, by their name in the stock model.
        max_rank: Larger ranks are refused.
        dtype: Of the model.
        device: Of the model.

    Raises:
        ConfigError: It can't be read, is made for another model, or holds what is not done here; says which.
    """
    config = _read_config(folder, name)
    weights = _read_weights(folder, name)
    if not weights:
        raise ConfigError(f"adapter {name!r}: {WEIGHTS_FILE} holds no weights. Save it again.")
    layers: dict[str, LowRank] = {}
    for layer, (down, up) in weights.items():
        _check_layer(name, layer, down, up, shapes, max_rank)
        scaled = up.float() * config.scale(layer, len(down))
        layers[layer] = LowRank(down=down.to(device, dtype), up=scaled.to(device, dtype))
    return Adapter(
        name=name,
        identity=_identity(folder),
        rank=max(pair.rank for pair in layers.values()),
        layers=layers,
    )


def _names(pattern: str, layer: str) -> bool:
    try:
        return _REGEX.match(rf"(.*\.)?({pattern})$", layer, timeout=_PATTERN_TIMEOUT_S) is not None
    except TimeoutError:
        raise ConfigError(
            f"{CONFIG_FILE}: the pattern {pattern[:100]!r} of alpha_pattern takes for ever to read. Write the names out."
        ) from None


def check_adapter(folder: Path, name: str) -> None:
    """Refuses an adapter that would not be served, by its files' names and its config alone.

    Raises:
        ConfigError: Says why.
    """
    _read_config(folder, name)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(f"adapter {name!r}: there is no {WEIGHTS_FILE}. Save it with safetensors.")


def _read_config(folder: Path, name: str) -> PeftConfig:
    path = folder / CONFIG_FILE
    try:
        text = path.read_bytes()
        given: Any = msgspec.json.decode(text)
        config = msgspec.convert(given, PeftConfig, strict=False)
        for pattern in config.alpha_pattern:
            _REGEX.compile(pattern)
    except OSError as error:
        raise ConfigError(
            f"adapter {name!r}: there is no {CONFIG_FILE} to read. Name a folder that PEFT's save_pretrained wrote."
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, _REGEX.error) as error:
        raise ConfigError(f"adapter {name!r}: {CONFIG_FILE} is not what PEFT writes: {error}.") from error
    if config.peft_type.upper() != "LORA":
        raise ConfigError(f"adapter {name!r}: it is of the type {config.peft_type}; only LORA can be served.")
    refused = [what for setting, what in _REFUSED.items() if given.get(setting)]
    if config.bias != "none":
        refused.append(f"biases of its own (bias: {config.bias})")
    init = config.init_lora_weights
    if isinstance(init, str) and init.startswith(_INITS_THAT_CHANGE_THE_BASE):
        refused.append(f"changed base weights (init_lora_weights: {init}; PEFT can convert it to a plain LoRA)")
    if refused:
        raise ConfigError(
            f"adapter {name!r}: it has {' and '.join(refused)}, which is not served yet. Merge it into the model and "
            "serve that, or train a plain LoRA."
        )
    return config


def _read_weights(folder: Path, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    path = folder / WEIGHTS_FILE
    sides: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    try:
        with _SAFE_OPEN(path, framework="pt") as file:
            for key in file.keys():
                match = _KEY.fullmatch(key)
                if match is None:
                    unknown.append(key)
                else:
                    sides.setdefault(match["layer"], {})[match["side"]] = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"adapter {name!r}: {WEIGHTS_FILE} can't be read: {error}. Save it with safetensors (pickled weights are not "
            "loaded)."
        ) from error
    if unknown:
        raise ConfigError(
            f"adapter {name!r}: it holds {len(unknown)} tensors that are no LoRA of a linear layer, such as "
            f"{unknown[0][:200]!r}, which is not served yet."
        )
    halves = [layer for layer, pair in sides.items() if len(pair) != 2]
    if halves:
        raise ConfigError(f"adapter {name!r}: {halves[0]} has one of lora_A and lora_B only. Save it again.")
    return {layer: (pair["A"], pair["B"]) for layer, pair in sides.items()}


def _check_layer(
    name: str, layer: str, down: Tensor, up: Tensor, shapes: Mapping[str, ModuleShape], max_rank: int
) -> None:
    shape = shapes.get(layer)
    if shape is None:
        raise ConfigError(
            f"adapter {name!r}: {layer[:200]} is no linear layer within the decoder's blocks of this model. Adapters of "
            "embeddings, output heads and experts are not served yet; for one of another model, name that model."
        )
    rank = len(down) if down.ndim else 0
    if rank > max_rank:
        raise ConfigError(f"adapter {name!r}: its rank of {rank} exceeds lora.max_rank ({max_rank}). Raise it.")
    if rank < 1 or tuple(down.shape) != (rank, shape.in_features) or tuple(up.shape) != (shape.out_features, rank):
        raise ConfigError(
            f"adapter {name!r}: {layer} has the shapes {tuple(down.shape)} and {tuple(up.shape)}, which do not fit the "
            f"model's {shape.in_features} to {shape.out_features}. It is made for another model."
        )
    if not (bool(torch.isfinite(down).all()) and bool(torch.isfinite(up).all())):
        raise ConfigError(f"adapter {name!r}: {layer} holds values that are not finite. Train it again.")


def _identity(folder: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for file_name in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / file_name).open("rb") as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
    return digest.digest()
