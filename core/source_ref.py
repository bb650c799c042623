"""How a source is written, and further sources inside a model's options: a voice, a speaker network, an adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, model_validator

_DUMPED = {"source", "path"}
_SOURCE = re.compile(r"[a-z][a-z0-9+.-]+:.+", re.DOTALL)


def source_text(value: object) -> str:
    """The one text form of a source: it travels to sources, compares in a diff and stands in messages.

    Raises:
        ValueError: Neither ``scheme:reference`` nor a mapping with the scheme as its one key.
    """
    if isinstance(value, dict) and len(mapping := cast("dict[str, Any]", value)) == 1:
        ((scheme, reference),) = mapping.items()
        value = f"{scheme}:{reference if isinstance(reference, str) else json.dumps(reference, sort_keys=True)}"
    if isinstance(value, str) and _SOURCE.fullmatch(value):
        return value
    raise ValueError(
        "must be 'scheme:reference', such as 'hf:org/repo' or 'file:models/mine', or a mapping with the scheme as its "
        "one key"
    )


class SourceRef(BaseModel):
    """A field type for a family's options: further files that the model needs, written as a model's ``source`` is.

    The registry fetches them with the model's own files, in the serving process, so a loader finds them in ``path``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    source: str
    """``scheme:reference``."""
    path: Path | None = None
    """The local folder or file; set by the registry, always there when a loader runs."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: object) -> object:
        fields = _mapping(given)
        if "source" in fields and fields.keys() <= _DUMPED:
            return fields  # as the registry sends it to the worker
        text = source_text(fields or given)
        scheme, _, reference = text.partition(":")
        if scheme == "file" and not Path(reference).expanduser().is_absolute():
            raise ValueError("must be an absolute path: options do not know the folder of the configuration file")
        return {"source": text}

    @property
    def local_path(self) -> Path:
        """The files, for loaders."""
        assert self.path is not None, "the registry resolves every SourceRef before a model loads"
        return self.path


def _mapping(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def source_refs(options: BaseModel) -> tuple[SourceRef, ...]:
    """All further sources of a family's options, also of nested ones and of mappings such as adapters by name."""
    return tuple(ref for name in type(options).model_fields for ref in _refs(getattr(options, name)))


def _refs(value: object) -> tuple[SourceRef, ...]:
    if isinstance(value, SourceRef):
        return (value,)
    if isinstance(value, BaseModel):
        return source_refs(value)
    return tuple(ref for inner in _mapping(value).values() for ref in _refs(inner))


def resolve_refs(options: BaseModel, resolve: Callable[[SourceRef], Path]) -> BaseModel:
    """A copy of the options in which every further source has its path."""
    before = {name: getattr(options, name) for name in type(options).model_fields}
    after = {name: _resolved(value, resolve) for name, value in before.items()}
    changed = {name: value for name, value in after.items() if value is not before[name]}
    return options.model_copy(update=changed) if changed else options


def _resolved(value: object, resolve: Callable[[SourceRef], Path]) -> object:
    if isinstance(value, SourceRef):
        return value.model_copy(update={"path": resolve(value)})
    if isinstance(value, BaseModel):
        return resolve_refs(value, resolve)
    mapping = _mapping(value)
    return {name: _resolved(inner, resolve) for name, inner in mapping.items()} if _refs(mapping) else value
