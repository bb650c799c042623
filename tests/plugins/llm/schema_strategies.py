"""Draws JSON schemas of the kinds that clients send: objects of records, nested, with formats, unions and references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st

Schema = dict[str, Any]

_NAMES = st.sampled_from(["id", "name", "tags", "size", "unit", "is_ok", "größe", "a b", 'quo"te', "x", "y", "note"])
# Beyond plane 1 there are bytes that the small model's vocabulary can't spell.
_WORDS = st.text(st.characters(max_codepoint=0x1FFFF, exclude_categories=["Cs", "Cc"]), max_size=6)
_LEAF_VALUES = st.none() | st.booleans() | st.integers(-1000, 1000) | _WORDS
_MAX_DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class DrawnSchema:
    """A schema, and whether every instance of it is short."""

    schema: Schema
    is_bounded: bool


@st.composite
def _strings(draw: st.DrawFn) -> Schema:
    kind = draw(st.sampled_from(["length", "length", "pattern", "format"]))
    if kind == "pattern":
        return {
            "type": "string",
            "pattern": draw(st.sampled_from([r"^[A-Z]{2}\d{3}$", r"^(red|green)-\d$", r"^.{1,5}$"])),
        }
    if kind == "format":
        return {"type": "string", "format": draw(st.sampled_from(["date", "uuid", "ipv4"]))}
    shortest = draw(st.integers(0, 4))
    return {"type": "string", "minLength": shortest, "maxLength": shortest + draw(st.integers(0, 8))}


@st.composite
def _numbers(draw: st.DrawFn) -> Schema:
    low = draw(st.integers(-500, 500))
    high = low + draw(st.integers(2, 2000))
    ends = draw(
        st.sampled_from([("minimum", "maximum"), ("exclusiveMinimum", "maximum"), ("minimum", "exclusiveMaximum")])
    )
    return {"type": "integer", ends[0]: low, ends[1]: high} | (
        {"multipleOf": 1} if draw(st.booleans()) and low == 0 else {}
    )


def _enum(values: list[object]) -> Schema:
    return {"enum": values}


def _const(value: object) -> Schema:
    return {"const": value}


_LEAVES = st.one_of(
    _strings(),
    _numbers(),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(_enum, st.lists(_LEAF_VALUES, min_size=1, max_size=4, unique_by=repr)),
    st.builds(_const, _LEAF_VALUES),
    st.just({"type": ["integer", "null"], "minimum": 0, "maximum": 99}),
)


@st.composite
def _arrays(draw: st.DrawFn, depth: int) -> Schema:
    if draw(st.integers(0, 3)) == 0:
        items = draw(st.lists(_nodes(depth + 1), min_size=1, max_size=3))
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    fewest = draw(st.integers(0, 2))
    return {
        "type": "array",
        "items": draw(_nodes(depth + 1)),
        "minItems": fewest,
        "maxItems": fewest + draw(st.integers(0, 2)),
    }


@st.composite
def _objects(draw: st.DrawFn, depth: int) -> Schema:
    names = draw(st.lists(_NAMES, min_size=1, max_size=4, unique=True))
    return {
        "type": "object",
        "properties": {name: draw(_nodes(depth + 1)) for name in names},
        "required": [name for name in names if draw(st.integers(0, 3))],
        "additionalProperties": False,
    }


@st.composite
def _unions(draw: st.DrawFn, depth: int) -> Schema:
    if draw(st.booleans()):
        return {"anyOf": draw(st.lists(_nodes(depth + 1), min_size=2, max_size=3))}
    # A tagged union, as pydantic writes one.
    tags = draw(st.lists(st.sampled_from(["cat", "dog", "bird"]), min_size=2, max_size=3, unique=True))
    members: list[Schema] = []
    for tag in tags:
        member = draw(_objects(depth + 1))
        member["properties"] = {"kind": {"const": tag}} | member["properties"]
        member["required"] = ["kind", *member["required"]]
        members.append(member)
    return {"oneOf": members}


@st.composite
def _nodes(draw: st.DrawFn, depth: int) -> Schema:
    if depth >= _MAX_DEPTH:
        return draw(_LEAVES)
    return draw(st.one_of(_LEAVES, _LEAVES, _arrays(depth), _objects(depth), _unions(depth)))


@st.composite
def schemas(draw: st.DrawFn) -> DrawnSchema:
    """An object's schema; some have a member without an upper bound: a string, an array or a recursion."""
    schema = draw(_objects(0))
    names = list(schema["properties"])
    if draw(st.integers(0, 3)) == 0:
        schema["$defs"] = {"shared": draw(_nodes(2))}
        schema["properties"][names[0]] = {"$ref": "#/$defs/shared"}
    if draw(st.integers(0, 9)):
        return DrawnSchema(schema=schema, is_bounded=True)
    schema["properties"][names[-1]] = draw(
        st.sampled_from(
            [
                {"type": "string"},
                {"type": "number"},
                {"type": "array", "items": {"type": "string", "maxLength": 4}},
                {"type": "object", "additionalProperties": {"type": "integer"}},
                {"$ref": "#"},
            ]
        )
    )
    if schema["properties"][names[-1]] == {"$ref": "#"}:
        schema["required"] = [name for name in schema["required"] if name != names[-1]]
    return DrawnSchema(schema=schema, is_bounded=False)
