"""Finds a marker in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


def split_at_marker(text: str, markers: Sequence[str]) -> tuple[str, str, str]:
    """Cuts text at the first marker: what is before it, the marker, and what is after it.

    Without a marker the marker is empty, and what is "after" is the end of the text that may be the start of one: to be
    looked at again with the next piece.
    """
    found = [(at, marker) for marker in markers if (at := text.find(marker)) >= 0]
    if found:
        at, marker = min(found)
        return text[:at], marker, text[at + len(marker) :]
    held = max((_overlap(text, marker) for marker in markers), default=0)
    return text[: len(text) - held], "", text[len(text) - held :]


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of ``text`` that ``marker`` begins with."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
