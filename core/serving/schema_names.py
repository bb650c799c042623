"""Looks into the annotations of a schema: which names a place of a body may have, which types a field may have."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel


def field_names_at(schema: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Names (aliases where there are any) of the fields that the object at ``path`` may have; [] if it has none."""
    kinds: list[Any] = [schema]
    for part in path:
        kinds = [inner for kind in kinds for inner in _inside(kind, part)]
    return [
        field.alias or name
        for kind in kinds
        if isinstance(kind, type) and issubclass(kind, BaseModel)
        for name, field in kind.model_fields.items()
    ]


def _inside(kind: Any, part: str | int) -> Iterator[Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            if part in (name, field.alias):
                yield from union_members(field.annotation)
        return
    arguments = [argument for argument in typing.get_args(kind) if argument is not Ellipsis]
    if arguments:  # a sequence or mapping: its last argument is the element
        yield from union_members(arguments[-1])


def union_members(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the annotation alone; ``Annotated`` is stripped."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from union_members(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from union_members(argument)
    else:
        yield annotation
