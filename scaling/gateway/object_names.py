"""What objects a request is about: ids in its path and its body, read as the most lenient server would."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

import msgspec

from sixfold.scaling.gateway.inbound import Inbound, text_of

KINDS = frozenset(("videos", "responses", "batches", "files"))
"""What replicas keep for later requests, by the path below ``/v1``."""

_LISTS = frozenset(("/v1/videos", "/v1/files", "/v1/batches"))


def segments(path: str) -> Sequence[str]:
    """The parts of a path as the most lenient server reads them."""
    return [each for each in unquote(path).split("/") if each not in ("", ".")]


def below_kind(path: Sequence[str]) -> Sequence[str] | None:
    """What follows ``/v1/videos`` and its like; None for other paths."""
    is_kept = len(path) >= 2 and path[0] == "v1" and path[1] in KINDS
    return path[2:] if is_kept else None


def object_of_path(path: str) -> str | None:
    """The id of the object that a path is about; None if it is about none."""
    below = below_kind(segments(path))
    return below[0] if below else None


def named_objects(inbound: Inbound) -> dict[str, str]:
    """The parameters that name objects, and the ids: of the path, of what is continued, of the lines of a batch."""
    found: dict[str, str] = {}
    of_path = object_of_path(inbound.path)
    if of_path is not None:
        found["id"] = of_path
    if inbound.prompt is not None:
        for param, raw in (
            ("previous_response_id", inbound.prompt.previous_response_id),
            ("input_file_id", inbound.prompt.input_file_id if makes_batch(inbound) else msgspec.Raw(b"")),
        ):
            text = text_of(raw)
            if text is not None:
                found[param] = text
    return found


def makes_batch(inbound: Inbound) -> bool:
    """Whether it begins a batch."""
    return inbound.method == "POST" and list(segments(inbound.path)) == ["v1", "batches"]


def makes_file(method: str, path: str) -> bool:
    """Whether a request of this kind uploads a file."""
    return method == "POST" and list(segments(path)) == ["v1", "files"]


def lists_objects(inbound: Inbound) -> bool:
    """Whether it is for a list of what is kept, written as every server reads it."""
    return inbound.method == "GET" and inbound.path in _LISTS
