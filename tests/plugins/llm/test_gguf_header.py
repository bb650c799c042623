"""GGUF files that claim more than they hold end in words, not in all of the machine's memory."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGUFWriter

from sixfold.plugins.llm.gguf_header import BoundedGgufReader

HEAD = b"GGUF\3\0\0\0"
MANY = 2**63 - 1


def a_file(folder: Path) -> bytes:
    path = folder / "whole.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_array("tokens", ["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def read(folder: Path, data: bytes) -> str:
    path = folder / "model.gguf"
    path.write_bytes(data)
    field = BoundedGgufReader(path).get_field("general.architecture")
    assert field is not None
    return str(field.contents())


def test_a_whole_file_is_read_as_ever(tmp_path: Path) -> None:
    assert read(tmp_path, a_file(tmp_path)) == "llama"


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(struct.pack("<QQ", MANY, 0), id="tensors"),
        pytest.param(struct.pack("<QQ", 0, MANY), id="fields"),
        pytest.param(struct.pack("<QQQ", 0, 1, MANY) + b"a" * 64, id="a name"),
        pytest.param(struct.pack("<QQQcIIQ", 0, 1, 1, b"a", 9, 0, MANY) + b"a" * 64, id="an array of bytes"),
        pytest.param(struct.pack("<QQQcIIQ", 0, 1, 1, b"a", 9, 8, MANY) + bytes(64), id="an array of texts"),
        pytest.param(struct.pack("<QQQcIIQ", 0, 1, 1, b"a", 9, 9, MANY) + bytes(64), id="an array of arrays"),
    ],
)
def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path: Path, rest: bytes) -> None:
    with pytest.raises(ValueError):
        read(tmp_path, HEAD + rest)


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = a_file(tmp_path)
    for length in range(8, 24):
        with pytest.raises((ValueError, IndexError)):
            read(tmp_path, whole[:length])
