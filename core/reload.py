"""Decides what a changed configuration file does to a running server; a broken one does nothing and says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sixfold.core.config import Settings
from sixfold.core.errors import UsageError
from sixfold.core.plugins import Plugins
from sixfold.core.registry import RegistryDiff, check_entry, diff


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """The outcome of one reading of the configuration.

    Attributes:
        settings: What holds from now on; the old settings, unchanged, after an error.
        diff: What happens to the models; empty after an error.
        error: Why the new file was refused, or None.
        needs_restart: Dotted names of changed fields that only a restart can apply; they keep their old value.
    """

    settings: Settings
    diff: RegistryDiff
    error: str | None = None
    needs_restart: tuple[str, ...] = ()


def reload_settings(current: Settings, read: Callable[[], Settings], plugins: Plugins) -> Reload:
    """Reads the configuration again and compares it with the one in force; changes nothing itself.

    Args:
        current: The settings in force.
        read: Reads the new settings, e.g. ``lambda: load_config(path)``; raises UsageError when they are wrong.
        plugins: Every new entry is checked against them before any is accepted.
    """
    try:
        new = read()
        for entry in new.models.values():
            check_entry(entry, plugins)
    except UsageError as error:
        return Reload(settings=current, diff=RegistryDiff(), error=str(error))
    fields = type(current.server).model_fields
    fixed = [f"server.{f}" for f in fields if getattr(current.server, f) != getattr(new.server, f)]
    fixed += [f for f in ("cache_dir", "memory_limits_bytes", "telemetry") if getattr(new, f) != getattr(current, f)]
    settings = current.model_copy(update={"models": new.models})
    return Reload(settings=settings, diff=diff(current.models, new.models), needs_restart=tuple(fixed))
