"""What an author of a plugin most likely got wrong: names that are near those that exist, and decorators that are missing."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping

import pluggy

from sixfold.core import hookspecs
from sixfold.core.family import Family
from sixfold.core.hookspecs import PROJECT, Api
from sixfold.core.validation import did_you_mean, nearest

HOOKS = frozenset(name for name, value in vars(hookspecs).items() if hasattr(value, f"{PROJECT}_spec"))
"""The names of all hooks."""
_ALIKE = 0.85
"""How near a function's name must be to a hook's: ``register_widgets`` is no misspelling."""


def hook_error(manager: pluggy.PluginManager, plugin: object) -> str | None:
    """Why a plugin can't be registered: a hook that does not exist, or with arguments that it does not have."""
    for name, hook in _implemented(manager, plugin).items():
        if hook not in HOOKS:
            close = nearest(hook, HOOKS)
            guess = f"Did you mean {close!r}?" if close else f"Hooks are: {', '.join(sorted(HOOKS))}."
            return f"there is no hook {hook!r}. {guess}"
        known = inspect.signature(getattr(hookspecs, hook)).parameters
        wrong = [argument for argument in inspect.signature(getattr(plugin, name)).parameters if argument not in known]
        if wrong:
            return f"the hook {hook} has no argument {wrong[0]!r}. Its arguments are: {', '.join(known)}."
    return None


def hook_hint(manager: pluggy.PluginManager, plugin: object) -> str | None:
    """What is said of a plugin none of whose functions is a hook, or one of which looks like one and is none."""
    implemented = _implemented(manager, plugin)
    own: Mapping[str, object] = getattr(plugin, "__dict__", {})
    for name, value in own.items():
        # What it has imported is not its own.
        if (
            not inspect.isfunction(value)
            or name in implemented
            or value.__module__ != getattr(plugin, "__name__", None)
        ):
            continue
        meant = difflib.get_close_matches(name, HOOKS, n=1, cutoff=_ALIKE)
        if meant:
            guess = "" if name in HOOKS else f" Did you mean {meant[0]!r}?"
            return f"{name} is never called: it has no decorator @hookimpl.{guess}"
    if not implemented:
        return "it offers nothing: no function has the decorator @hookimpl, and its entry point names no Plugin."
    return None


def _implemented(manager: pluggy.PluginManager, plugin: object) -> dict[str, str]:
    """The functions that a plugin marks as hooks, and which; those that need not exist are its own business."""
    found: dict[str, str] = {}
    for name in dir(plugin):
        options: Mapping[str, object] | None = manager.parse_hookimpl_opts(plugin, name)
        if options is not None and not options.get("optionalhook"):
            found[name] = str(options.get("specname") or name)
    return found


def operation_hints(family: Family, apis: Iterable[Api]) -> list[str]:
    """A sentence for each operation of a family that no HTTP face asks for: no client could reach it."""
    known = {operation for api in apis for operation in api.all_operations}
    return [
        f"The family {family.name!r} has the operation {operation!r}, which no Api here asks for."
        f" {did_you_mean(operation, known)}"
        for operation in sorted(family.operations - known)
    ]
