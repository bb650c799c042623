"""Turns data that a person wrote into pydantic models, and pydantic's complaints into messages that say what to do."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sixfold.core.errors import ConfigError
from sixfold.core.yaml_document import Location, dotted

ModelT = TypeVar("ModelT", bound=BaseModel)

_SECRET_WORDS = ("key", "token", "secret", "password")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, or None if nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that corrects a misspelt name: the nearest known one, and all of them."""
    names = sorted(known)
    close = nearest(name, names)
    guess = f"Did you mean {close!r}? " if close else ""
    return f"{guess}Known: {', '.join(names) if names else 'none'}."


def validate(
    model: type[ModelT],
    data: Mapping[str, object],
    *,
    prefix: Location = (),
    where: Callable[[Location], str] = lambda _location: "",
) -> ModelT:
    """Validates ``data`` against a pydantic class.

    Args:
        model: The class; unknown keys are named with the nearest known one when it forbids them.
        data: What was written.
        prefix: Where ``data`` stands in the whole, for dotted paths in messages.
        where: Gives ``file:line`` of a location; "" for none.

    Raises:
        ConfigError: One line per problem, all problems at once.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems: list[str] = []
        for detail in error.errors(include_url=False):
            location = (*prefix, *detail["loc"])
            place = where(location)
            path = dotted(location) or "the file"
            problems.append(f"{place + ': ' if place else ''}{path}: {_problem(model, detail)}")
        raise ConfigError("\n".join(problems)) from None


def _problem(model: type[BaseModel], detail: ErrorDetails) -> str:
    location = detail["loc"]
    if detail["type"] == "extra_forbidden":
        return f"unknown key. {did_you_mean(str(location[-1]), _known_keys(model, location[:-1]))}"
    if detail["type"] == "missing":
        return "is required. Add it."
    if detail["type"] in ("model_type", "dict_type"):
        return "must be a mapping of keys to values."
    message = detail["msg"].removeprefix("Value error, ")
    given = detail["input"]
    shown = isinstance(given, str | int | float) and detail["type"] != "value_error"
    secret = any(word in str(part).lower() for part in location for word in _SECRET_WORDS)
    return f"{message} (given: {given!r})." if shown and not secret else message.removesuffix(".") + "."


def _known_keys(model: type[BaseModel], location: Location) -> list[str]:
    """Keys that the mapping at ``location`` inside ``model`` may have."""
    found: list[Any] = [model]
    for part in location:
        inner: list[Any] = []
        for kind in found:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                field = kind.model_fields.get(str(part))
                inner += _alternatives(field.annotation) if field else []
            else:  # a mapping or sequence: its last argument is the element
                arguments = [arg for arg in typing.get_args(kind) if arg is not Ellipsis]
                inner += _alternatives(arguments[-1]) if arguments else []
        found = inner
    return [
        name for kind in found if isinstance(kind, type) and issubclass(kind, BaseModel) for name in kind.model_fields
    ]


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation alone; ``Annotated`` is stripped."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [each for arg in typing.get_args(annotation) for each in _alternatives(arg)]
    return [annotation]
