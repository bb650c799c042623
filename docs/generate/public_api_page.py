"""reference/python.md: the names that other packages may import."""

from __future__ import annotations

from docs.generate.markdown import NOTE, cell, summary, table
from sixfold import core


def page() -> str:
    """The whole page."""
    rows = [(f"`{name}`", _said(name)) for name in sorted(core.__all__, key=str.lower)]
    return "\n".join([NOTE, "# Python names\n", _INTRODUCTION, table(("Name of `sixfold.core`", "What it is"), rows)])


_WORDS = {
    "hookimpl": "Marks a function of a plugin as the implementation of a hook.",  # pluggy's own words are about pluggy
    "Progress": "Called with (what, bytes done, bytes in all or None) while files are fetched or converted.",  # an alias
}


def _said(name: str) -> str:
    if name in _WORDS:
        return _WORDS[name]
    return cell(summary(getattr(core, name)))


_INTRODUCTION = """\
The public API is `__all__` of `sixfold.core`; the rest may change without notice. Docstrings are the contracts: read
them in your editor, or by `python -m pydoc sixfold.core.StepModel`.
"""
