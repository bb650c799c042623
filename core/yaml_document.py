"""Reads a YAML file so that every later complaint can name the line: duplicates refused, ``${ENV}`` filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml
from pydantic import JsonValue

from sixfold.core.errors import ConfigError

Location = tuple[str | int, ...]
"""Keys and list indexes from the root to a value, e.g. ``("models", "a", "aliases", 0)``."""

_MERGE_TAG = "tag:yaml.org,2002:merge"
_MERGED = "<<"
_MAX_PLACES = 20_000
"""Keys and items of a file with its aliases written out: nine lines of aliases can stand for a thousand million."""
_MAX_DEPTH = 100
_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<body>[^}]*)(?P<end>\}?)")
_VARIABLE_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-.*)?", re.DOTALL)


class _TooDeep(Exception):
    pass


class _Loader(yaml.SafeLoader):
    """Stops at the depth where no operator's file is: PyYAML's own time grows with the square of it."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        if self._depth == _MAX_DEPTH:
            raise _TooDeep
        self._depth += 1
        node = super().compose_node(parent, index)  # type: ignore[arg-type]  # the stubs know no document's root
        self._depth -= 1
        return node


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed YAML file.

    Attributes:
        file: Its name, for messages.
        root: The top-level mapping.
        lines: Line (from 1) of each key and list item.
    """

    file: str
    root: Mapping[str, JsonValue]
    lines: Mapping[Location, int]

    def where(self, location: Location) -> str:
        """``file:line`` of a value, or of the nearest enclosing one that stands in the file."""
        for length in range(len(location), 0, -1):
            line = self.lines.get(location[:length])
            if line is not None:
                return f"{self.file}:{line}"
        return self.file


def dotted(location: Location) -> str:
    """A location as people write it: ``models.a.aliases[0]``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """Replaces ``${NAME}`` and ``${NAME:-default}``; ``$${`` stands for a literal ``${``.

    The default is used when the variable is unset or empty, as in a shell.

    Raises:
        ConfigError: A variable is not set and has no default, or ``${`` is not closed.
    """

    def value(match: re.Match[str]) -> str:
        if match["body"] is None:
            return "${"
        body = _VARIABLE_BODY.fullmatch(match["body"])
        if body is None or not match["end"]:
            raise ConfigError(
                f"{match[0]!r} is not a reference to an environment variable. "
                "Write ${NAME} or ${NAME:-default}, or $${ for a literal ${."
            )
        name, default = body["name"], body["default"]
        if default is not None:
            return environ.get(name) or str(default)[2:]
        if name not in environ:
            raise ConfigError(
                f"the environment variable {name} is not set. Set it, or give a default: ${{{name}:-default}}."
            )
        return environ[name]

    return _VARIABLE.sub(value, text)


def read_document(path: Path, environ: Mapping[str, str]) -> Document:
    """Reads one YAML file whose root is a mapping.

    Raises:
        ConfigError: No such file, not YAML, a duplicate or non-text key, or an unset variable; with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}. Check the path.") from error
    return parse_document(text, str(path), environ)


def parse_document(text: str, file: str, environ: Mapping[str, str]) -> Document:
    """Like `read_document`, for text that was read already."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}.") from error
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(file, {}, {})
        lines = dict(_bounded(_walk(node, (), file, ()), file))
        # YAML's further types (dates, binary) pass as they are: the settings' own types refuse them.
        construct = cast(Callable[[yaml.Node], JsonValue], loader.construct_document)  # pyright: ignore[reportUnknownMemberType]  # untyped
        root = construct(node)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{file}{line}: not valid YAML: {problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}.") from error
    except RecursionError:  # of aliases in aliases
        raise ConfigError(f"{file}: its aliases are nested too deeply. Write it flatter.") from None
    except _TooDeep:
        raise ConfigError(f"{file}: it is nested deeper than {_MAX_DEPTH} levels. Write it flatter.") from None
    except (ValueError, LookupError) as error:  # what the constructors of dates and tagged values raise
        raise ConfigError(f"{file}: it holds a value that is no YAML: {error}. Put the value in quotes.") from error
    finally:
        loader.dispose()
    if not isinstance(root, dict):
        raise ConfigError(f"{file}: the file must hold a mapping with the key 'models', not a {type(root).__name__}.")
    document = Document(file, root, lines)
    return Document(file, {key: _fill(value, (key,), document, environ) for key, value in root.items()}, lines)


def _bounded(places: Iterator[tuple[Location, int]], file: str) -> Iterator[tuple[Location, int]]:
    for number, place in enumerate(places):
        if number == _MAX_PLACES:
            raise ConfigError(f"{file}: its aliases stand for more than {_MAX_PLACES} entries. Use fewer aliases.")
        yield place


def _walk(
    node: yaml.Node, location: Location, file: str, parents: tuple[yaml.Node, ...]
) -> Iterator[tuple[Location, int]]:
    """Yields the line of each key and item, and refuses what PyYAML accepts but no operator means."""
    if node in parents:
        raise ConfigError(f"{file}:{node.start_mark.line + 1}: a YAML anchor contains itself. Remove the alias.")
    parents = (*parents, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*location, index), item.start_mark.line + 1
            yield from _walk(item, (*location, index), file, parents)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE_TAG:
                yield from _walk(value, (*location, _MERGED), file, parents)  # for what it counts and refuses
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise ConfigError(f"{file}:{line}: the key {shown} is not text. Put it in quotes.")
            if key.value in seen:
                raise ConfigError(
                    f"{file}:{line}: {dotted((*location, key.value))} is given twice, first in line "
                    f"{seen[key.value]}. Remove one."
                )
            seen[key.value] = line
            yield (*location, key.value), line
            yield from _walk(value, (*location, key.value), file, parents)


def _fill(value: JsonValue, location: Location, document: Document, environ: Mapping[str, str]) -> JsonValue:
    """Fills in the variables of every text below ``value``."""
    if isinstance(value, dict):
        return {key: _fill(item, (*location, key), document, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, (*location, index), document, environ) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    try:
        return interpolate(value, environ)
    except ConfigError as error:
        raise ConfigError(f"{document.where(location)}: {dotted(location)}: {error}") from None
