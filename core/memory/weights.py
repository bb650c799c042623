"""Reads what weights take from the headers of their files, without reading the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sixfold.core.errors import SourceError

_MAX_HEADER_BYTES = 100 << 20
"""The format's own bound."""

_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6} | {
    f"{kind}{bits}": bits for kind in ("F", "BF", "I", "U") for bits in (8, 16, 32, 64)
}
_WEIGHT_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".onnx", ".gguf", ".npz"})


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file.

    Attributes:
        name: In the file.
        dtype: As the format names it: ``F32``, ``BF16``, ``I8``.
        shape: Of the tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_values(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Its size as it is stored."""
        return self.num_values * _BITS.get(self.dtype, 8) // 8

    @property
    def is_float(self) -> bool:
        """Whether a loader converts it to the type of the model: integers stay what they are."""
        return self.dtype in ("F16", "BF16", "F32", "F64")

    def bytes_as(self, itemsize: int) -> int:
        """Its size in a model whose weights have ``itemsize`` bytes each."""
        return self.num_values * itemsize if self.is_float else self.num_bytes


def read_tensors(file: Path) -> tuple[StoredTensor, ...]:
    """The tensors of a safetensors file, from its header alone.

    Raises:
        SourceError: It is not such a file.
    """
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 2 <= size <= min(_MAX_HEADER_BYTES, file.stat().st_size):
                raise ValueError(f"its header would be {size} bytes long")
            header: Any = json.loads(stream.read(size))
            entries = cast("Mapping[str, Mapping[str, Any]]", header).items()
            return tuple(
                StoredTensor(name, str(entry["dtype"]), tuple(_length(n) for n in entry["shape"]))
                for name, entry in entries
                if name != "__metadata__"
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{file.name} of the model is not a safetensors file: {error}. Pull the model again."
        ) from error


def _length(given: Any) -> int:
    if not isinstance(given, int) or given < 0:
        raise ValueError(f"a tensor has the length {given!r}")
    return given


def folder_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of the safetensors files in a folder, or of the one file; sub-folders are not looked at.

    Variants of one file (``.fp16.safetensors``) hold the same names, and one of them is loaded: the largest counts.
    """
    found: dict[str, StoredTensor] = {}
    for file in (path,) if path.is_file() else sorted(path.glob("*.safetensors")):
        if file.suffix != ".safetensors":
            continue
        for tensor in read_tensors(file):
            other = found.get(tensor.name)
            if other is None or other.num_bytes < tensor.num_bytes:
                found[tensor.name] = tensor
    return tuple(found.values())


def weights_bytes(path: Path, *, itemsize: int | None = None, recursive: bool = False) -> int:
    """What a model's weights take.

    Args:
        path: Its folder, or its one file.
        itemsize: Bytes of a weight once it is loaded; None for the type that is stored.
        recursive: Also looks in sub-folders (a diffusers pipeline has one for each component).

    Where a folder has no safetensors, its other weight files count as they are.
    """
    if path.is_dir() and recursive:
        folders = [path, *(folder for folder in sorted(path.iterdir()) if folder.is_dir())]
        return sum(weights_bytes(folder, itemsize=itemsize) for folder in folders)
    tensors = folder_tensors(path)
    if tensors:
        return sum(tensor.num_bytes if itemsize is None else tensor.bytes_as(itemsize) for tensor in tensors)
    files = (path,) if path.is_file() else sorted(path.iterdir())
    return sum(file.stat().st_size for file in files if file.suffix in _WEIGHT_SUFFIXES)
