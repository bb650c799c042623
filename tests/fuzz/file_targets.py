"""Readers of files: the operator's configuration, and what whoever made a model put beside it."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from hashlib import sha256
from typing import Any

import torch
from gguf import GGUFWriter
from safetensors.torch import save

from sixfold.core.config import load_config
from sixfold.core.errors import ConfigError, SourceError
from sixfold.core.memory.weights import read_tensors
from sixfold.core.sources.wheel_reference import WheelReference
from sixfold.core.sources.wheels import unpack
from sixfold.core.yaml_document import parse_document
from sixfold.plugins.llm.eagle3_files import read_eagle3
from sixfold.plugins.llm.gguf_header import BoundedGgufReader
from sixfold.plugins.llm.lora_adapter import ModuleShape
from sixfold.plugins.llm.lora_files import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from tests.fuzz.target import Target, as_file, check, scratch, text_of

_SHAPES = {"model.layers.0.self_attn.q_proj": ModuleShape(in_features=4, out_features=4)}
_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
_SAVE: Any = save  # typed in part
_DEEP = b"[" * 3000


def _yaml(data: bytes) -> None:
    parse_document(text_of(data), "sixfold.yaml", {"HOME_OF": "x"})


def _config(data: bytes) -> None:
    settings = load_config(as_file(data, "sixfold.yaml"), environ={})
    settings.models  # noqa: B018  # resolved when it is read


def _wheel_reference(data: bytes) -> None:
    text = text_of(data)
    wanted = WheelReference.parse(text)
    check(WheelReference.parse(str(wanted)) == wanted, "a reference does not read back")
    check(not wanted.path.is_absolute() and ".." not in wanted.path.parts, "a path that leads outside")


def _wheel(data: bytes) -> None:
    root = scratch() / "unpacked"
    shutil.rmtree(root, ignore_errors=True)
    folder = root / "inside"
    folder.mkdir(parents=True)
    pin = f"p==1#sha256={sha256(data).hexdigest()}&path=m"
    unpack(WheelReference.parse(pin), [as_file(data, "p.whl")], folder, lambda _what, _done, _total: None)
    check([each.name for each in root.iterdir()] == ["inside"], "a member was written outside")
    check(not any(each.is_symlink() for each in folder.rglob("*")), "a member is a link")


def _safetensors(data: bytes) -> None:
    for tensor in read_tensors(as_file(data, "model.safetensors")):
        check(tensor.num_bytes >= 0, "a tensor of negative size")


def _adapter(data: bytes) -> None:
    folder = scratch() / "adapter"
    folder.mkdir(exist_ok=True)
    config, weights = _cut(data)
    (folder / CONFIG_FILE).write_bytes(config)
    (folder / WEIGHTS_FILE).write_bytes(weights)
    adapter = read_adapter(
        folder, name="a", shapes=_SHAPES, max_rank=8, dtype=torch.float32, device=torch.device("cpu")
    )
    check(adapter.rank <= 8, "a rank beyond the bound")


def _eagle3(data: bytes) -> None:
    folder = scratch() / "eagle3"
    folder.mkdir(exist_ok=True)
    config, weights = _cut(data)
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(weights)
    read_eagle3(folder, hidden_size=8, vocab_size=16, place="speculation.source").tap_places(6, "x")


def _cut(data: bytes) -> tuple[bytes, bytes]:
    config, _, weights = data.partition(b"\n\n")
    return config, weights


def _gguf(data: bytes) -> None:
    # As the converter begins, in a process of its own: whatever it raises there is told as its last line.
    reader: Any = BoundedGgufReader(as_file(data, "model.gguf"))
    str(reader.get_field("general.architecture").contents())


def _made_gguf() -> bytes:
    path = scratch() / "made.gguf"
    writer: Any = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path.read_bytes()


def zipped(*members: tuple[str, bytes]) -> bytes:
    """A zip file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def tensors(**shapes: tuple[int, ...]) -> bytes:
    """A safetensors file of zeros; ``__`` in a name stands for a dot."""
    data: bytes = _SAVE({name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()})
    return data


def header(text: object) -> bytes:
    """A safetensors file that is a header alone."""
    data = text if isinstance(text, bytes) else json.dumps(text).encode()
    return len(data).to_bytes(8, "little") + data


def _lora(weights: bytes, **config: object) -> bytes:
    return json.dumps({"peft_type": "LORA", "lora_alpha": 4, "r": 2} | config).encode() + b"\n\n" + weights


def _head(weights: bytes, **config: object) -> bytes:
    base = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 16,
    }
    return json.dumps(base | config).encode() + b"\n\n" + weights


def _laughs(levels: int) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines).encode()


_LORA_WEIGHTS: bytes = _SAVE({_KEY.format("A"): torch.zeros(2, 4), _KEY.format("B"): torch.zeros(4, 2)})
_MODELS = (
    b"models:\n  chat:\n    source: file:x\n    aliases: [a, b]\n    options: {dtype: float32}\nserver:\n  port: 0\n"
)
_YAML_WORDS = (
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!binary ",
    b"!!int ",
    b"2024-01-01",
    b"${HOME_OF}",
    b"${",
    b"? ",
    b"- ",
    b": ",
    b"|\n",
    b"%YAML 1.1\n---\n",
)

FILE_TARGETS = (
    Target(
        name="file.yaml",
        read=_yaml,
        refuses=(ConfigError,),
        seeds=(
            _MODELS,
            b"a: &x {b: 1}\nc: {<<: *x, d: ${HOME_OF:-y}}\n",
            b"a: *a",
            b"",
            b"- 1",
            b"when: 2024-02-03 04:05:06.7+01:00",
        ),
        words=_YAML_WORDS,
        budget_s=30.0,  # nine lines of aliases, with the code watched
        broke=(b"when: 2024-13-45", _DEEP, _laughs(9), b"a: !!int x", b"a: !!float x", b"&a {? *a : 1}", b"\0"),
    ),
    Target(
        name="file.config",
        read=_config,
        refuses=(ConfigError,),
        seeds=(_MODELS, b"models: 1", b"\xff"),
        words=(*_YAML_WORDS, b"api_keys", b"data_dir"),
    ),
    Target(
        name="file.wheel_reference",
        read=_wheel_reference,
        refuses=(SourceError,),
        seeds=(
            b"p==1.0#sha256=" + b"a" * 64 + b"&path=m/x",
            json.dumps({"wheels": [f"p==1#sha256={'a' * 64}"], "path": "m", "join": {"a": ["b"]}}).encode(),
        ),
        words=(b"#sha256=", b"&path=", b"..", b"%2e%2e", b"/", b'{"wheels":['),
        broke=(b'{"wheels":' + _DEEP, b"{" + b'"\xff"'),
    ),
    Target(
        name="file.wheel",
        read=_wheel,
        refuses=(SourceError,),
        seeds=(
            zipped(("m/a", b"x"), ("m/b/c", b"y")),
            zipped(("m/../../out", b"x")),
            zipped(("m/a", b"1"), ("m/a/b", b"2")),
            b"PK\5\6" + bytes(18),
        ),
        words=(b"PK\3\4", b"PK\1\2", b"PK\5\6", b"m/", b"../", b"/"),
    ),
    Target(
        name="file.safetensors",
        read=_safetensors,
        refuses=(SourceError,),
        seeds=(tensors(a=(2, 3)), header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}), header([])),
        words=(b'"dtype":', b'"shape":[', b'"data_offsets":', b"1e999", b"Infinity", b"-1", b"__metadata__"),
        broke=(
            header(b'{"a":{"dtype":"F32","shape":[1e999]}}'),
            header(_DEEP),
            header(b'{"a":{"dtype":"F32","shape":[-3]}}'),
        ),
    ),
    Target(
        name="file.lora",
        read=_adapter,
        refuses=(ConfigError,),
        seeds=(
            _lora(_LORA_WEIGHTS),
            _lora(_LORA_WEIGHTS, use_rslora=True, alpha_pattern={"q_proj": 2}),
            _lora(b""),
            _lora(header({})),
        ),
        words=(
            b'"alpha_pattern":{',
            b'"use_dora":true',
            b'"lora_alpha":',
            b"lora_A.weight",
            b"F32",
            b"BF16",
            b'"shape":[',
        ),
        broke=(
            _lora(_LORA_WEIGHTS, alpha_pattern={"(.+)+!": 1}),
            b'{"peft_type":"LORA","lora_alpha":1,"x":' + _DEEP,
            b'{"\xff":1}\n\n',
        ),
    ),
    Target(
        name="file.eagle3",
        read=_eagle3,
        refuses=(ConfigError, SourceError),
        seeds=(
            _head(tensors(fc__weight=(8, 24), norm__weight=(8,), lm_head__weight=(16, 8))),
            _head(b"", eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}),
        ),
        words=(b'"eagle_config":', b'"head_dim":', b'"rope_scaling":', b"lm_head.weight", b"d2t"),
        broke=(
            _head(tensors(lm_head__weight=())),
            _head(b"", eagle_config=[1]),
            _head(tensors(norm__weight=(8,)), eagle_config={"eagle_aux_hidden_state_layer_ids": "abc"}),
            _head(b"", hidden_size="x"),
            _head(b"", num_attention_heads=0),
            b"[1]\n\n",
            b"{\n\n",
        ),
    ),
    Target(
        name="file.gguf",
        read=_gguf,
        refuses=(Exception,),
        seeds=(_made_gguf(), b"GGUF\3\0\0\0" + bytes(16), b"GGUF"),
        words=(b"GGUF", b"general.architecture", b"\xff" * 8, b"general.alignment"),
        broke=(b"GGUF\3\0\0\0" + b"\xff" * 16 + bytes(64),),
    ),
)
"""Files."""
