"""reference/hooks.md: every hook that a plugin may implement, and what it hands over."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator

from docs.generate.markdown import NOTE, attributes, cell, prose, summary, table
from sixfold.core import hookspecs
from sixfold.core.benchmark.workload import Sample, Workload
from sixfold.core.family import Family, LoadContext, MetricSpec
from sixfold.core.hookspecs import Api, Command, Source
from sixfold.core.plugins import new_manager

HANDED_OVER = (Family, LoadContext, MetricSpec, Api, Command, Workload, Sample)
"""Dataclasses that hooks register or are given; each of their fields is in the page."""

_PARAGRAPH = re.compile(r"\n\s*\n")


def page() -> str:
    """The whole page."""
    hooks = sorted(hook_functions(), key=lambda item: item[0])
    parts = [NOTE, "# Hooks\n", _INTRODUCTION, *(_hook(name, function) for name, function in hooks)]
    parts.append("## What hooks hand over\n")
    parts += [_fields(kind) for kind in HANDED_OVER]
    parts.append(_methods(Source))
    return "\n".join(parts)


def hook_functions() -> Iterator[tuple[str, object]]:
    """Name and specification of every hook."""
    for name in vars(new_manager().hook):
        if not name.startswith("_"):
            yield name, getattr(hookspecs, name)


def _hook(name: str, function: object) -> str:
    assert callable(function)
    signature = str(inspect.signature(function)).replace("'", "")
    summary(function)  # a hook without words is refused
    paragraphs = [prose(text) for text in _PARAGRAPH.split(inspect.getdoc(function) or "")]
    return f"## {name}\n\n```python\ndef {name}{signature}\n```\n\n" + "\n\n".join(paragraphs) + "\n"


def _fields(kind: type) -> str:
    described = attributes(kind)
    rows: list[tuple[str, str, str]] = []
    for field in dataclasses.fields(kind):
        if field.name not in described:
            raise ValueError(f"{kind.__name__}.{field.name} is not under 'Attributes:' of the class. Say what it is.")
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        rows.append((f"`{field.name}`", "yes" if required else "", cell(described[field.name])))
    return f"### {kind.__name__}\n\n{summary(kind)}\n\n" + table(("Field", "Required", "Meaning"), rows)


def _methods(kind: type) -> str:
    rows = [
        (f"`{name}`", cell(summary(member)))
        for name, member in vars(kind).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    ]
    return f"### {kind.__name__}\n\n{summary(kind)}\n\n" + table(("Member", "Contract"), rows)


_INTRODUCTION = """\
A plugin is a module that an entry point of the group `sixfold` names. It implements any of these hooks with
`@sixfold.core.hookimpl`; first-party plugins come in the same way. [Writing a plugin](../plugins.md) shows how they are
used. The module imports nothing heavy: it is loaded in every process.
"""
