"""``sixfold simulate --availability``: a failure model as a table, and what breaks it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from sixfold.core.errors import ConfigError
from sixfold.core.validation import validate
from sixfold.core.yaml_document import read_document
from sixfold.scaling.sim.availability import (
    YEAR_S,
    AvailabilitySettings,
    Cost,
    availability,
    costs,
    read_measured,
    variants,
)


def report(path: Path) -> tuple[list[str], bool]:
    """The lines to print, and whether the objective is kept.

    Raises:
        ConfigError: The file or the measurement is wrong.
    """
    settings = _load(path)
    measured = None if settings.measured is None else read_measured(path.resolve().parent / settings.measured)
    found = costs(settings, measured)
    kept = availability(found) >= settings.objective
    lines = _table(found)
    lines += [
        "",
        f"availability {_percent(availability(found))}, {_nines(found)} nines: {sum(each.year_s for each in found):.0f} s a "
        f"year of the {(1.0 - settings.objective) * YEAR_S:.0f} s that {settings.objective:.2%} allows: "
        f"{'kept' if kept else 'not kept'}",
    ]
    if measured is not None:
        lines.append(
            f"measured: {measured.num_failed} of {measured.num_exposed} requests around the loss failed, so that at most "
            f"{measured.fails:.0%} may; all replicas back after {measured.restore_s:.1f} s"
        )
    for name, changed in variants(settings).items():
        other = costs(changed, measured)
        lines.append(f"what if {name}: {_percent(availability(other))}, {_nines(other)} nines")
    return lines, kept


def _load(path: Path) -> AvailabilitySettings:
    document = read_document(path, os.environ)
    data: JsonValue = document.root.get("availability")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: the key 'availability' must hold a mapping. See docs/availability.md.")
    return validate(AvailabilitySettings, data, prefix=("availability",), where=document.where)


def _table(found: Sequence[Cost]) -> list[str]:
    rows = [("FAILURE", "A YEAR", "EACH", "ALL", "SOURCE")]
    rows += [
        (each.name, f"{each.per_year:g}", f"{each.each_s:.3g} s", f"{each.year_s:.1f} s", each.source) for each in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4])).rstrip()
        for row in rows
    ]


def _percent(share: float) -> str:
    return f"{100.0 * share:.4f}%"


def _nines(found: Sequence[Cost]) -> str:
    missing = 1.0 - availability(found)
    return "all" if missing <= 0.0 else f"{-math.log10(missing):.1f}"
