"""Turns the flat items of a form or a query string into what a pydantic model wants, guided by its annotations."""

from __future__ import annotations

import re
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sixfold.core.errors import InvalidRequest
from sixfold.core.serving.body import explain
from sixfold.core.serving.multipart import FormItem, FormValue
from sixfold.core.serving.schema_names import union_members
from sixfold.core.serving.upload import Upload

BodyT = TypeVar("BodyT", bound=BaseModel)

_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\]){0,4})")
_MAX_INDEX = 999


def parse_fields(items: Sequence[FormItem], schema: type[BodyT]) -> BodyT:
    """Validates a form's items, in pydantic's lax mode: text becomes numbers and booleans where the schema has these.

    ``name`` (repeated), ``name[]`` and ``name[0]`` make a list, ``name[key]`` an object; text for a field that holds an
    object is JSON.

    Raises:
        InvalidRequest: A field is missing, unknown, of a wrong type or given twice; ``param`` names it.
    """
    data = {name: given.value(name, _shape(schema, name)) for name, given in _group(items).items()}
    try:
        return schema.model_validate(data, strict=False)
    except ValidationError as failure:
        raise explain(failure, data, schema) from None


def takes_upload(schema: type[BaseModel], name: str) -> bool:
    """Whether the field of this name takes a file, or several."""
    info = _field(schema, name)
    kinds = [] if info is None else list(union_members(info.annotation))
    return any(kind is Upload or Upload in typing.get_args(kind) for kind in kinds)


def takes_many(schema: type[BaseModel], name: str) -> bool:
    """Whether the field of this name takes a list."""
    return _shape(schema, name).many


@dataclass(slots=True)
class _Given:
    """What a form has under one name."""

    plain: list[FormValue] = field(default_factory=list[FormValue])
    indexed: dict[int, FormValue] = field(default_factory=dict[int, FormValue])
    members: dict[str, Any] = field(default_factory=dict[str, Any])
    bracketed: bool = False

    def value(self, name: str, shape: _Shape) -> object:
        if self.members:
            if self.plain or self.indexed:
                raise _bad(name, "it is given as an object and as a plain value; choose one")
            if shape.many and all(map(str.isdecimal, self.members)):  # name[0][key]
                return [self.members[index] for index in sorted(self.members, key=int)]
            return self.members
        values: list[Any] = [*self.plain, *(self.indexed[index] for index in sorted(self.indexed))]
        if shape.structured:
            values = [_from_json(name, value, text_too=shape.text) for value in values]
            if shape.many and len(values) == 1 and isinstance(values[0], list):
                return typing.cast(list[object], values[0])
        if shape.many and (len(values) > 1 or self.bracketed or not shape.one):
            return values
        if len(values) > 1:
            raise _bad(name, f"it is given {len(values)} times; give it once")
        return values[0]


def _group(items: Sequence[FormItem]) -> dict[str, _Given]:
    found: dict[str, _Given] = {}
    for item in items:
        match = _KEY.fullmatch(item.name)
        name, path = (match[1], re.findall(r"\[(.*?)\]", match[2])) if match else (item.name, [])
        given = found.setdefault(name, _Given())
        given.bracketed |= bool(path)
        if path in ([], [""]):
            given.plain.append(item.value)
        elif len(path) == 1 and path[0].isdecimal():
            index = int(path[0][:4])
            if index > _MAX_INDEX or index in given.indexed:
                raise _bad(item.name[:100], "an index is given twice or is too large")
            given.indexed[index] = item.value
        else:
            _put(given.members, path, item)
    return found


def _put(members: dict[str, Any], path: Sequence[str], item: FormItem) -> None:
    """Stores the value at ``path``; a last part of ``""`` appends to a list there."""
    appends = path[-1] == ""
    keys = path[:-1] if appends else path
    if "" in keys or not keys:
        raise _bad(item.name[:100], "only the last brackets may be empty")
    clash = _bad(item.name[:100], "it is given in two ways; choose one")
    here = members
    for key in keys[:-1]:
        inner: Any = here.setdefault(key, {})
        if not isinstance(inner, dict):
            raise clash
        here = typing.cast(dict[str, Any], inner)
    if appends:
        values: Any = here.setdefault(keys[-1], [])
        if not isinstance(values, list):
            raise clash
        typing.cast(list[FormValue], values).append(item.value)
    elif keys[-1] in here:
        raise clash
    else:
        here[keys[-1]] = item.value


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a field's annotation takes: one value, many, objects, text."""

    one: bool = True
    many: bool = False
    structured: bool = False
    text: bool = False


def _shape(schema: type[BaseModel], name: str) -> _Shape:
    info = _field(schema, name)
    if info is None:
        return _Shape()
    kinds = [kind for kind in union_members(info.annotation) if kind is not type(None)]
    lists = [kind for kind in kinds if _is_list(kind)]
    singles = [kind for kind in kinds if not _is_list(kind)]
    leaves = singles + [leaf for kind in lists for part in typing.get_args(kind) for leaf in union_members(part)]
    structured = any(_is_object(kind) for kind in leaves)
    return _Shape(
        one=bool(singles),
        many=bool(lists),
        structured=structured,
        text=any(not _is_object(kind) for kind in leaves if kind is not type(None)),
    )


def _field(schema: type[BaseModel], name: str) -> FieldInfo | None:
    for field_name, info in schema.model_fields.items():
        alias = info.validation_alias or info.alias
        names = alias.choices if isinstance(alias, AliasChoices) else [alias]
        if name == field_name or name in names:
            return info
    return None


def _is_list(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, Collection) and not issubclass(origin, str | bytes | Mapping)


def _is_object(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, BaseModel | Mapping)


def _from_json(name: str, value: FormValue, *, text_too: bool) -> Any:
    if not isinstance(value, str) or (text_too and not value.lstrip().startswith(("{", "["))):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        raise _bad(name, "it is not valid JSON") from None


def _bad(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid parameter {name[:100]!r}: {reason}.", param=name[:100])
