"""Tells whether two processes may exchange cache blocks: whether a block's bytes mean the same to both."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, cast

import msgspec

from sixfold.plugins.llm.kv_cache import KvCache

# Raised whenever the order of a block's bytes, or what is computed into them, changes.
_FORMAT = 1
_SAMPLE_BYTES = 4096
_WEIGHT_SUFFIXES = (".safetensors", ".bin")


def fingerprint(folder: Path, cache: KvCache, *, quantization: str = "") -> str:
    """Of a model's files and of its cache, in hex.

    Whole weights would take minutes to read, so every tensor is sampled at its begin, middle and end: a fine-tuned model
    differs there, but two that differ in nothing else than a few other bytes are not told apart.

    Args:
        folder: The model's files.
        cache: Where its blocks are.
        quantization: How its weights are kept, if not as in the files.
    """
    digest = hashlib.blake2b(digest_size=16)
    shapes = [list(tensor.shape[1:]) for tensor in cache.tensors]
    dtype = str(cache.dtype) if cache.scheme is None else f"{cache.dtype} in {cache.scheme}"
    digest.update(msgspec.json.encode([_FORMAT, sys.byteorder, dtype, cache.block_size, shapes]))
    digest.update(quantization.encode())
    config = folder / "config.json"
    digest.update(config.read_bytes() if config.exists() else b"")
    for path in sorted(p for p in folder.iterdir() if p.suffix in _WEIGHT_SUFFIXES):
        with path.open("rb") as file:
            for begin, end in _spans(path):
                for place in (begin, (begin + end) // 2, max(begin, end - _SAMPLE_BYTES)):
                    file.seek(place)
                    digest.update(file.read(min(_SAMPLE_BYTES, end - place)))
    return digest.hexdigest()


def _spans(path: Path) -> list[tuple[int, int]]:
    """Where the file's tensors begin and end; the whole file if it does not tell."""
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return [(0, size)]
    with path.open("rb") as file:
        data_begin = 8 + int.from_bytes(file.read(8), "little")
        header = cast("dict[str, Any]", msgspec.json.decode(file.read(data_begin - 8)))
    offsets = [header[name]["data_offsets"] for name in sorted(header) if name != "__metadata__"]
    return [(0, data_begin), *((data_begin + begin, data_begin + end) for begin, end in offsets)]
