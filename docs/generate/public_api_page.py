"""reference/python.md: the names that other packages may import."""

from __future__ import annotations

import importlib
from types import ModuleType, UnionType
from typing import get_args

from docs.generate.first_party import MODALITIES
from docs.generate.markdown import NOTE, cell, summary, table
from sixfold import core


def page() -> str:
    """The whole page."""
    contracts = [importlib.import_module(f"sixfold.plugins.{modality}.contract") for modality in MODALITIES]
    return "\n".join([NOTE, "# Python names\n", _INTRODUCTION, *map(_names, (core, *contracts))])


def _names(module: ModuleType) -> str:
    rows = [(f"`{name}`", _said(module, name)) for name in sorted(module.__all__, key=str.lower)]
    return f"## `{module.__name__}`\n\n{table(('Name', 'What it is'), rows)}"


_WORDS = {
    "hookimpl": "Marks a function of a plugin as the implementation of a hook.",  # pluggy's own words are about pluggy
    "Progress": "Called with (what, bytes done, bytes in all or None) while files are fetched or converted.",  # an alias
}


def _said(module: ModuleType, name: str) -> str:
    if name in _WORDS:
        return _WORDS[name]
    thing = getattr(module, name)
    if isinstance(thing, UnionType):
        return " or ".join(f"`{kind.__name__}`" for kind in get_args(thing)) + "."
    return cell(f"`{thing}`." if isinstance(thing, int) else summary(thing))


_INTRODUCTION = """\
The public API is `__all__` of `sixfold.core`, and of `sixfold.plugins.MODALITY.contract` what a family of that modality takes
and gives; the rest may change without notice. Docstrings are the contracts: read them in your editor, or by
`python -m pydoc sixfold.core.StepModel`.
"""
