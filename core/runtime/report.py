"""Whom fetching and loading tell how far they are."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Told how far fetching and loading are; from any thread."""

    def update(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """Bytes were fetched or converted."""
        ...

    def update_fraction(self, what: str, fraction: float) -> None:
        """``fraction`` of ``what``, 0 to 1, is done."""
        ...


class NoReport:
    """A `Report` that shows nothing."""

    def update(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        """Shows nothing."""

    def update_fraction(self, what: str, fraction: float) -> None:
        """Shows nothing."""
