"""Encodes messages that hold megabytes without copying these: an upload must not hold up the loop that serves everyone."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, cast

import msgspec

LARGE_BYTES = 256 * 1024
"""From here on, not copying is worth the search."""
_MAX_DEPTH = 4
_MAX_ITEMS = 64
"""Sequences are searched so far: uploads are few, and token ids are many."""
_MARKER_BYTES = 16
_BIN8, _BIN32 = b"\xc4", b"\xc6"


def encode_pieces(encoder: msgspec.msgpack.Encoder, message: msgspec.Struct) -> list[bytes]:
    """The msgpack of a message, cut so that each large ``bytes`` in it is a piece of its own: the very object, no copy.

    Joined, the pieces are what ``encoder.encode(message)`` returns.
    """
    if not _has_large(message, _MAX_DEPTH):
        return [encoder.encode(message)]
    # Large values are replaced by short random ones; msgpack is cut where these stand.
    replaced: list[tuple[bytes, bytes]] = []
    plain = _replace(msgspec.to_builtins(message, builtin_types=(bytes, bytearray, memoryview)), replaced)
    rest = encoder.encode(plain)
    pieces: list[bytes] = []
    for marker, value in replaced:
        before, _, rest = rest.partition(_BIN8 + bytes((_MARKER_BYTES,)) + marker)
        pieces += (before + _BIN32 + len(value).to_bytes(4, "big"), value)
    return [*pieces, rest]


def _has_large(value: object, depth: int) -> bool:
    if isinstance(value, bytes):
        return len(value) >= LARGE_BYTES
    if depth == 0:
        return False
    if isinstance(value, msgspec.Struct):
        return any(_has_large(getattr(value, name), depth - 1) for name in value.__struct_fields__)
    if isinstance(value, list | tuple):
        items = cast(Sequence[object], value)
        return any(_has_large(item, depth - 1) for item in items[:_MAX_ITEMS])
    return False


def _replace(value: Any, replaced: list[tuple[bytes, bytes]]) -> Any:
    """A copy of containers with markers for large bytes, in the order in which msgpack will write them."""
    if isinstance(value, bytes) and len(value) >= LARGE_BYTES:
        marker = secrets.token_bytes(_MARKER_BYTES)
        replaced.append((marker, value))
        return marker
    if isinstance(value, dict):
        return {key: _replace(inner, replaced) for key, inner in cast(dict[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [_replace(inner, replaced) for inner in cast(Sequence[object], value)]
    return value
