"""The text of ``sixfold models`` and ``sixfold plugins``: aligned columns that read well on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sixfold.core.config import ModelEntry, Objective, Settings
from sixfold.core.errors import UsageError
from sixfold.core.plugin_hints import operation_hints
from sixfold.core.plugins import PluginRecord, Plugins
from sixfold.core.registry import check_entry, install_command


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns as wide as their longest cell; the last one is not padded."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header) - 1)]
    lines: list[str] = []
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return lines


def model_lines(settings: Settings, plugins: Plugins) -> list[str]:
    """One row per model, and below the table what keeps any of them from being served."""
    rows = [
        (
            entry.name,
            ", ".join(entry.aliases) or "-",
            entry.family or "(from its files)",
            str(entry.replicas),
            entry.device,
            _objective(entry.objective),
            entry.source,
        )
        for entry in settings.models.values()
    ]
    lines = table(("NAME", "ALIASES", "FAMILY", "REPLICAS", "DEVICE", "OBJECTIVE", "SOURCE"), rows)
    problems = [problem for entry in settings.models.values() if (problem := _problem(entry, plugins))]
    return [*lines, *([""] if problems else []), *problems]


def plugin_lines(plugins: Plugins) -> list[str]:
    """The plugins and where they come from, then what they offer; problems stand in the last column, or below."""
    lines = table(
        ("PLUGIN", "MODULE", "FROM", "STATE"),
        [
            (record.name, record.module, record.distribution or "the program", _state(record))
            for record in plugins.records
        ],
    )
    families = [
        (
            family.name,
            plugins.origin[f"family {family.name}"],
            f"missing {', '.join(missing)}: {install_command(family, plugins)}"
            if (missing := family.missing())
            else "ready",
            family.summary,
        )
        for family in sorted(plugins.families.values(), key=lambda family: family.name)
    ]
    lines += ["", *(table(("FAMILY", "PLUGIN", "STATE", "SUMMARY"), families) if families else ["No model families."])]
    lines += ["", *_offers("Sources", "source", plugins.sources, plugins)]
    lines += _offers("HTTP APIs", "api", plugins.apis, plugins)
    lines += _offers("Commands", "command", plugins.commands, plugins)
    hints = [hint for family in plugins.families.values() for hint in operation_hints(family, plugins.apis.values())]
    return [*lines, *([""] if hints else []), *(f"Warning: {hint}" for hint in hints)]


def _offers(title: str, kind: str, offers: Mapping[str, object], plugins: Plugins) -> list[str]:
    named = [f"{name} ({plugins.origin[f'{kind} {name}']})" for name in sorted(offers)]
    return [f"{title}: {', '.join(named) or 'none'}"]


def _state(record: PluginRecord) -> str:
    if record.error is not None:
        return f"not loaded: {record.error}"
    return "loaded" if record.hint is None else f"loaded, but {record.hint}"


def _objective(objective: Objective) -> str:
    targets = [(name, getattr(objective, name)) for name in Objective.model_fields]
    return next((f"{name}={value:g}" for name, value in targets if value is not None), "throughput")


def _problem(entry: ModelEntry, plugins: Plugins) -> str | None:
    try:
        check_entry(entry, plugins)
    except UsageError as error:
        return str(error)
    return None
