"""Turns the demo's CTranslate2 Whisper into a folder of transformers, so that both families can be compared on speech."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers import PreTrainedTokenizerFast as FastTokenizer

_TYPES: dict[int, Any] = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_WIDTH, _LAYERS, _HEADS = 512, 6, 8


class Weights:
    """The variables of a ``model.bin`` of version 6, as float32."""

    def __init__(self, path: Path) -> None:
        self._data = path.read_bytes()
        self._at = 0
        self._values: dict[str, NDArray[Any]] = {}
        self._number("I")  # the format's version
        self._text()
        self._number("I")
        for _variable in range(self._number("I")):
            name = self._text()
            shape = [self._number("I") for _dimension in range(self._number("B"))]
            kind, size = _TYPES[self._number("B")], self._number("I")
            count = size // np.dtype(kind).itemsize
            self._values[name] = np.frombuffer(self._data, kind, count, self._at).reshape(shape)
            self._at += size
        self._aliases = {self._text(): self._text() for _alias in range(self._number("I"))}

    def __call__(self, name: str) -> torch.Tensor:
        value = self._values[self._aliases.get(name, name)]
        result = value.astype(np.float32)
        if value.dtype == np.int8:
            scale = self._values[self._aliases.get(f"{name}_scale", f"{name}_scale")].astype(np.float32)
            result = result / (scale[:, None] if scale.ndim and value.ndim == 2 else scale)
        return torch.tensor(result)

    def _number(self, kind: str) -> int:
        (value,) = struct.unpack_from(f"<{kind}", self._data, self._at)
        self._at += struct.calcsize(kind)
        return int(value)

    def _text(self) -> str:
        size = self._number("H")
        value = self._data[self._at : self._at + size - 1].decode()
        self._at += size
        return value


def state_of(weights: Weights) -> dict[str, torch.Tensor]:
    """The state dictionary of ``WhisperForConditionalGeneration``."""
    state: dict[str, torch.Tensor] = {}

    def put(target: str, source: str) -> None:
        state[f"{target}.weight"], state[f"{target}.bias"] = weights(f"{source}/weight"), weights(f"{source}/bias")

    def norm(target: str, source: str) -> None:
        state[f"{target}.weight"], state[f"{target}.bias"] = weights(f"{source}/gamma"), weights(f"{source}/beta")

    def attention(target: str, source: str, *, cross: bool) -> None:
        matrix: Any = weights(f"{source}/linear_0/weight")
        bias: Any = weights(f"{source}/linear_0/bias")
        if cross:
            matrix = torch.cat([matrix, weights(f"{source}/linear_1/weight")])
            bias = torch.cat([bias, weights(f"{source}/linear_1/bias")])
        for name, part, its_bias in zip("qkv", matrix.split(_WIDTH), bias.split(_WIDTH), strict=True):
            state[f"{target}.{name}_proj.weight"] = part
            if name != "k":
                state[f"{target}.{name}_proj.bias"] = its_bias
        put(f"{target}.out_proj", f"{source}/linear_{2 if cross else 1}")

    for side in ("encoder", "decoder"):
        base = f"model.{side}"
        state[f"{base}.embed_positions.weight"] = weights(f"{side}/position_encodings/encodings")
        norm(f"{base}.layer_norm", f"{side}/layer_norm")
        for number in range(_LAYERS):
            target, source = f"{base}.layers.{number}", f"{side}/layer_{number}"
            attention(f"{target}.self_attn", f"{source}/self_attention", cross=False)
            norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                attention(f"{target}.encoder_attn", f"{source}/attention", cross=True)
                norm(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
            put(f"{target}.fc1", f"{source}/ffn/linear_0")
            put(f"{target}.fc2", f"{source}/ffn/linear_1")
            norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")
    put("model.encoder.conv1", "encoder/conv1")
    put("model.encoder.conv2", "encoder/conv2")
    state["model.decoder.embed_tokens.weight"] = weights("decoder/embeddings/weight")
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


def convert(folder: Path, target: Path) -> None:
    """Writes the folder that ``from_pretrained`` reads."""
    facts: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config_class: Any = WhisperConfig
    config = config_class(
        vocab_size=51865,
        d_model=_WIDTH,
        encoder_layers=_LAYERS,
        decoder_layers=_LAYERS,
        encoder_attention_heads=_HEADS,
        decoder_attention_heads=_HEADS,
        encoder_ffn_dim=4 * _WIDTH,
        decoder_ffn_dim=4 * _WIDTH,
    )
    network_class: Any = WhisperForConditionalGeneration
    network = network_class(config)
    network.load_state_dict(state_of(Weights(folder / "model.bin")))
    end = "<|endoftext|>"
    tokenizer_class: Any = FastTokenizer
    tokenizer: Any = tokenizer_class(tokenizer_file=str(folder / "tokenizer.json"), eos_token=end, pad_token=end)
    ids: Any = tokenizer.convert_tokens_to_ids
    languages = {tokenizer.convert_ids_to_tokens(token): token for token in facts["lang_ids"]}
    generation_class: Any = GenerationConfig
    network.generation_config = generation_class(
        eos_token_id=ids(end),
        pad_token_id=ids(end),
        decoder_start_token_id=ids("<|startoftranscript|>"),
        no_timestamps_token_id=ids("<|notimestamps|>"),
        prev_sot_token_id=ids("<|startofprev|>"),
        is_multilingual=True,
        max_length=448,
        max_initial_timestamp_index=50,
        task_to_id={task: ids(f"<|{task}|>") for task in ("transcribe", "translate")},
        lang_to_id=languages,
        suppress_tokens=facts["suppress_ids"],
        begin_suppress_tokens=facts["suppress_ids_begin"],
        alignment_heads=facts["alignment_heads"],
    )
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
    extractor: Any = WhisperFeatureExtractor
    extractor(feature_size=80).save_pretrained(target)
