"""Reads EAGLE-3 heads as they are published: one decoder layer over three hidden states of the model, with a small vocabulary.

Source: Li et al. 2025 (EAGLE-3), and the files that SpecForge and the authors' own code write.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import LlamaConfig

from sixfold.core.errors import ConfigError
from sixfold.core.family import ModelFiles
from sixfold.plugins.llm.kv_cache import LayerShape
from sixfold.plugins.llm.tensors import int_list

_LAYER = "midlayer."
_NUM_TAPS = 3

# Typed in part.
_CONFIG: Any = LlamaConfig
_SAFETENSORS: Any = safetensors.torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Files:
    """A head's files, checked for themselves.

    Attributes:
        config: Of its layer; Llama's.
        tensors: By the published names.
        taps: The model's layers whose inputs it reads; None for the published rule.
        norms_first: Whether the hidden state is normed before it enters the residual stream.
    """

    config: Any
    tensors: Mapping[str, Tensor]
    taps: tuple[int, ...] | None
    norms_first: bool

    @property
    def shape(self) -> LayerShape:
        """What its layer keeps per token."""
        return LayerShape(num_kv_heads=self.config.num_key_value_heads, head_dim=self.config.head_dim)

    @property
    def num_bytes(self) -> int:
        """Of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def tap_places(self, num_layers: int, place: str) -> tuple[int, ...]:
        """The model's layers whose inputs it reads: near its begin, its middle and its end.

        Raises:
            ConfigError: The model has no such layers.
        """
        taps = self.taps or (2, num_layers // 2, num_layers - 3)
        if len(taps) != _NUM_TAPS or not all(0 <= tap < num_layers for tap in taps):
            raise ConfigError(
                f"{place}: the head reads the inputs of the layers {taps}, and the model has {num_layers}. It is made for "
                "another model."
            )
        return taps


def read_eagle3(path: Path, *, hidden_size: int, vocab_size: int, place: str) -> Eagle3Files:
    """Reads a head.

    Args:
        path: Its folder.
        hidden_size: Of the model that it guesses for.
        vocab_size: Likewise.
        place: Of the option, for messages.

    Raises:
        ConfigError: It is none, or is made for another model; says what is wrong.
    """
    given = ModelFiles(path).json("config.json")
    if not given:
        raise ConfigError(f"{place}: there is no config.json. Name the folder of an EAGLE-3 head.")
    eagle: Any = given.get("eagle_config") or {}
    if not isinstance(eagle, dict):
        raise ConfigError(f"{place}: config.json: eagle_config must be an object.")
    eagle = cast("dict[str, Any]", eagle)
    if given.get("num_hidden_layers", 1) != 1 or given.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{place}: the head must have one layer with SiLU, as EAGLE-3's have.")
    if not eagle.get("use_aux_hidden_state", True):
        raise ConfigError(f"{place}: the head reads the last hidden state alone; EAGLE-3's read three.")
    try:
        config = _CONFIG(
            **{name: value for name, value in given.items() if name not in ("architectures", "torch_dtype")}
        )
    except Exception as error:  # transformers raises whatever its computing with bad values stumbles over
        raise ConfigError(f"{place}: config.json is not that of a Llama layer: {error}") from error
    taps = eagle.get("eagle_aux_hidden_state_layer_ids")
    files = Eagle3Files(
        config=config,
        tensors=_read_tensors(path, place),
        taps=None if taps is None else _read_taps(taps, place),
        norms_first=bool(given.get("norm_before_residual", False)),
    )
    _check(files, hidden_size=hidden_size, vocab_size=vocab_size, place=place)
    return files


def _read_taps(given: Any, place: str) -> tuple[int, ...]:
    try:
        return tuple(int(tap) for tap in given)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"{place}: config.json: eagle_config.eagle_aux_hidden_state_layer_ids must be a list of layers."
        ) from None


def _read_tensors(path: Path, place: str) -> dict[str, Tensor]:
    safe, pickled = path / "model.safetensors", path / "pytorch_model.bin"
    try:
        if safe.is_file():
            read: Any = _SAFETENSORS.load_file(safe)
        elif pickled.is_file():  # the authors publish these; only tensors are read of them
            read = torch.load(pickled, map_location="cpu", weights_only=True)
        else:
            raise ConfigError(f"{place}: there is neither model.safetensors nor pytorch_model.bin.")
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{place}: pytorch_model.bin holds more than tensors, and code is never run from it."
        ) from error
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise ConfigError(f"{place}: the head's weights can't be read: {error}. Pull it again.") from error
    table = cast("dict[str, object]", read if isinstance(read, dict) else {"": read})
    tensors = {name: tensor for name, tensor in table.items() if isinstance(tensor, Tensor)}
    if len(tensors) < len(table):
        raise ConfigError(f"{place}: the head's weights are no table of tensors.")
    return {name.removeprefix("model.").replace("layers.0.", _LAYER): tensor for name, tensor in tensors.items()}


def _check(files: Eagle3Files, *, hidden_size: int, vocab_size: int, place: str) -> None:
    config, tensors = files.config, files.tensors
    dim, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    lm_head = tensors.get("lm_head.weight")
    num_drafted = vocab_size if lm_head is None or not lm_head.ndim else len(lm_head)
    expected: dict[str, Sequence[int]] = {
        "fc.weight": (dim, _NUM_TAPS * hidden_size),
        "norm.weight": (dim,),
        "lm_head.weight": (num_drafted, dim),
        f"{_LAYER}input_layernorm.weight": (dim,),
        f"{_LAYER}hidden_norm.weight": (dim,),
        f"{_LAYER}post_attention_layernorm.weight": (dim,),
        f"{_LAYER}self_attn.q_proj.weight": (queries, 2 * dim),
        f"{_LAYER}self_attn.k_proj.weight": (keys, 2 * dim),
        f"{_LAYER}self_attn.v_proj.weight": (keys, 2 * dim),
        f"{_LAYER}self_attn.o_proj.weight": (dim, queries),
        f"{_LAYER}mlp.gate_proj.weight": (inner, dim),
        f"{_LAYER}mlp.up_proj.weight": (inner, dim),
        f"{_LAYER}mlp.down_proj.weight": (dim, inner),
    }
    optional: dict[str, Sequence[int]] = {
        "d2t": (num_drafted,),
        "t2d": (vocab_size,),
        "embed_tokens.weight": (vocab_size, dim),
    }
    missing = [name for name in expected if name not in tensors]
    if num_drafted != vocab_size and "d2t" not in tensors:
        missing.append("d2t")
    if dim != hidden_size and "embed_tokens.weight" not in tensors:
        missing.append("embed_tokens.weight")
    if missing:
        raise ConfigError(f"{place}: the head lacks {', '.join(missing)}. Name the folder of an EAGLE-3 head.")
    for name, tensor in tensors.items():
        wanted = expected.get(name) or optional.get(name)
        if wanted is None:
            raise ConfigError(f"{place}: the head has {name[:200]!r}, which is not part of EAGLE-3's format.")
        if tuple(tensor.shape) != tuple(wanted):
            raise ConfigError(
                f"{place}: the head's {name} is {tuple(tensor.shape)}, where this model needs {tuple(wanted)}. It is made for "
                "another model."
            )
    if (offsets := tensors.get("d2t")) is not None:
        targets = offsets + torch.arange(num_drafted)
        if not (
            int(targets.min()) >= 0 and int(targets.max()) < vocab_size and len(set(int_list(targets))) == num_drafted
        ):
            raise ConfigError(f"{place}: the head's d2t points outside of the vocabulary, or twice to one token.")
