"""Tables of pydantic models: each key with its type, default and meaning, and a section for each model that is nested."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.generate.markdown import cell, prose, table

_SIMPLE = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Path: "path", type(None): "null"}
_BOUNDS: Mapping[type, str] = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


class Sections:
    """Collects the sections of one page; a model that is met again is linked, not repeated.

    Args:
        worded: Defaults that the code finds at run time, in words, by the model's and the field's name.
    """

    def __init__(self, worded: Mapping[tuple[str, str], str]) -> None:
        self._worded = worded
        self._titles: dict[type[BaseModel], str] = {}
        self.parts: list[str] = []

    def add(self, model: type[BaseModel], title: str, path: str = "") -> None:
        """Adds a model under a title, and below it those that its fields hold.

        Args:
            model: The settings.
            title: Of its section.
            path: Where it stands in the file, before its fields' names.

        Raises:
            ValueError: A field has no description.
        """
        if model in self._titles:
            return
        assert title not in self._titles.values(), f"two sections are called {title}"
        self._titles[model] = title
        at = len(self.parts)
        self.parts.append("")
        nested = [
            (name, inner, where)
            for name, field in model.model_fields.items()
            for inner, where in _models_in(field.annotation, "")
        ]
        for name, inner, where in nested:
            inner_path = f"{path}.{name}{where}" if path else f"{name}{where}"
            self.add(inner, inner_path, inner_path)
        rows = [self._row(model, name, field) for name, field in model.model_fields.items()]
        text = prose((model.__doc__ or "").partition("\n\n")[0])
        self.parts[at] = f"### {title}\n\n{text}\n\n" + table(("Key", "Type", "Default", "Meaning"), rows)

    def _row(self, model: type[BaseModel], name: str, field: FieldInfo) -> Sequence[str]:
        if not field.description:
            raise ValueError(f"{model.__module__}.{model.__name__}.{name} has no docstring. Say what it does.")
        default = self._worded.get((model.__name__, name)) or _default(field)
        return (f"`{name}`", self._type(field.annotation, field.metadata), default, cell(field.description))

    def _type(self, annotation: Any, metadata: Sequence[object] = ()) -> str:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return self._type(arguments[0], arguments[1:])
        if origin in (Union, types.UnionType):
            return " or ".join(dict.fromkeys(self._type(each, metadata) for each in arguments))
        if origin is Literal:
            return ", ".join(f"`{each}`" for each in arguments)
        if origin in (dict, Mapping):
            return f"mapping of {self._type(arguments[1])}"
        if origin in (tuple, list):
            return f"list of {self._type(arguments[0])}"
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation.__name__ == "SourceRef":
                return "source"
            title = self._titles[annotation]
            return f"[`{title}`](#{_anchor(title)})"
        name = _SIMPLE.get(annotation, "any value")
        bounds = [f"{_BOUNDS[type(each)]} {_limit(each)}" for each in _flat(metadata) if type(each) in _BOUNDS]
        return f"{name} {', '.join(bounds)}" if bounds and name != "null" else name


def _models_in(annotation: Any, where: str) -> Iterator[tuple[type[BaseModel], str]]:
    """The models that a type is made of, with how a key of theirs is written below the field's name."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation.__name__ != "SourceRef":  # written as a model's source is; its fields are never written
            yield annotation, where
    elif origin in (dict, Mapping):
        yield from _models_in(arguments[1], where + ".NAME")
    elif origin in (tuple, list):
        yield from _models_in(arguments[0], where + "[]")
    elif origin is Annotated:
        yield from _models_in(arguments[0], where)
    else:
        for each in arguments:
            yield from _models_in(each, where)


def _flat(metadata: Sequence[object]) -> Iterator[object]:
    for each in metadata:
        inner = getattr(each, "metadata", None)
        yield from inner if isinstance(inner, list) else (each,)


def _limit(bound: Any) -> str:
    (value,) = (getattr(bound, name) for name in ("ge", "gt", "le", "lt") if hasattr(bound, name))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "all defaults"
    if isinstance(value, tuple | list):
        value = [str(each) if isinstance(each, BaseModel) else each for each in value]
    if isinstance(value, str | Path) and str(value):
        return f"`{getattr(value, 'name', value)}`".lower() if hasattr(value, "name") else f"`{value}`"
    return f"`{json.dumps(value, default=str)}`"


def _anchor(title: str) -> str:
    """As Python-Markdown's toc makes it of a heading."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_")
    return "-".join(kept.split())
