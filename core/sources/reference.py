"""The text form of source references: a name, then ``#key=value&key=value``; parsing and writing are inverse."""

from __future__ import annotations

import urllib.parse
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from sixfold.core.errors import SourceError
from sixfold.core.validation import did_you_mean


def split_fragment(reference: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """Cuts ``name#key=value&...`` into the name and its decoded fields.

    Args:
        reference: The text after ``scheme:``.
        known: Fields that may occur.

    Raises:
        SourceError: An unknown, repeated or empty field.
    """
    name, _, fragment = reference.partition("#")
    fields: dict[str, str] = {}
    for part in fragment.split("&") if fragment else ():
        key, _, value = part.partition("=")
        if key not in known:
            raise SourceError(f"{reference!r}: unknown field {key!r} after '#'. {did_you_mean(key, known)}")
        if key in fields or not value:
            raise SourceError(f"{reference!r}: the field {key!r} must be given once, with a value.")
        fields[key] = urllib.parse.unquote(value)
    return name, fields


def join_fragment(name: str, fields: Mapping[str, str]) -> str:
    """The inverse of `split_fragment`."""
    fragment = "&".join(f"{key}={urllib.parse.quote(value, safe='/')}" for key, value in fields.items())
    return f"{name}#{fragment}" if fragment else name


def inner_path(text: str, reference: str) -> PurePosixPath:
    """A relative path below the model's root.

    Raises:
        SourceError: It is absolute or leads upwards.
    """
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text or not path.parts:
        raise SourceError(f"{reference!r}: {text!r} must be a relative path without '..'.")
    return path
