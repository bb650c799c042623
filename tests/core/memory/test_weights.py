from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from sixfold.core.errors import SourceError
from sixfold.core.memory.weights import read_tensors, weights_bytes


def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.write_bytes(save(tensors, {"format": "pt"}))


def test_sizes_are_those_of_the_tensors(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(3, 5),
        "b": torch.zeros(7, dtype=torch.bfloat16),
        "c": torch.zeros(2, 2, dtype=torch.int8),
        "d": torch.zeros((), dtype=torch.float64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = {tensor.name: tensor for tensor in read_tensors(tmp_path / "model.safetensors")}
    assert {name: t.num_bytes for name, t in found.items()} == {name: t.nbytes for name, t in tensors.items()}
    assert found["a"].shape == (3, 5)
    assert weights_bytes(tmp_path) == sum(t.nbytes for t in tensors.values())


def test_floats_count_in_the_type_of_the_model_and_integers_as_they_are(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(10), "b": torch.zeros(10, dtype=torch.int8)}, tmp_path / "model.safetensors")
    assert weights_bytes(tmp_path, itemsize=2) == 10 * 2 + 10


def test_shards_and_components_are_summed(tmp_path: Path) -> None:
    for folder, names in (("unet", ("one", "two")), ("vae", ("one",))):
        (tmp_path / folder).mkdir()
        for name in names:
            save_file({f"{name}.a": torch.zeros(4)}, tmp_path / folder / f"{name}.safetensors")
    assert weights_bytes(tmp_path) == 0
    assert weights_bytes(tmp_path, recursive=True) == 3 * 16


def test_other_weight_files_count_as_they_are_where_there_are_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x" * 100)
    (tmp_path / "config.json").write_text("{}")
    assert weights_bytes(tmp_path) == 100
    assert weights_bytes(tmp_path / "model.bin") == 100
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert weights_bytes(tmp_path) == 4


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 64, (9).to_bytes(8, "little") + b"{not json", b"[]" * 40])
def test_a_broken_file_says_to_pull_the_model_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SourceError, match=r"model\.safetensors.*Pull the model again"):
        read_tensors(tmp_path / "model.safetensors")


def test_a_header_that_lacks_what_the_format_demands_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32"}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(SourceError):
        read_tensors(tmp_path / "model.safetensors")


def test_of_variants_of_one_file_the_largest_counts(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "model.safetensors")
    save_file({"a": torch.zeros(4, dtype=torch.float16)}, tmp_path / "model.fp16.safetensors")
    assert weights_bytes(tmp_path) == 16
