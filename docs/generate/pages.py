"""Which reference pages there are, and whether they say what the code says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from docs.generate import (
    commands_page,
    endpoints_page,
    hooks_page,
    metrics_page,
    options_page,
    public_api_page,
    settings_page,
)

FOLDER = Path(__file__).parents[1] / "reference"

PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands_page.page,
    "endpoints.md": endpoints_page.page,
    "hooks.md": hooks_page.page,
    "metrics.md": metrics_page.page,
    "options.md": options_page.page,
    "python.md": public_api_page.page,
    "settings.md": settings_page.page,
}


def stale() -> list[str]:
    """The pages whose file differs from what would be written."""
    return [name for name, page in PAGES.items() if _written(name) != page()]


def _written(name: str) -> str:
    path = FOLDER / name
    return path.read_text(encoding="utf-8") if path.exists() else ""
