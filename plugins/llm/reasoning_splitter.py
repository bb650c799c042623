"""Keeps a model's reasoning and its answer apart, as they come."""

from __future__ import annotations

from sixfold.plugins.llm.answer_parts import ReasoningPart, TextPart
from sixfold.plugins.llm.markers import split_at_marker
from sixfold.plugins.llm.reasoning import CLOSES, OPENS


class ReasoningSplitter:
    """One per answer. The line breaks beside the markers belong to them and to nobody's text.

    Args:
        opens_in: Whether the answer begins within reasoning.
    """

    def __init__(self, *, opens_in: bool) -> None:
        self._is_inside = opens_in
        self._is_outside = False  # for good: reasoning comes once, and first
        self._pending = ""
        self._trims = True

    def push(self, text: str) -> list[ReasoningPart | TextPart]:
        """The parts that became certain."""
        parts: list[ReasoningPart | TextPart] = []
        self._pending += text
        if not self._is_inside and not self._is_outside:
            self._look_for_start()
        if self._is_inside:
            before, marker, self._pending = split_at_marker(self._pending, (CLOSES,))
            if not marker:  # the line break before the end of reasoning is not known as such yet
                kept = before.rstrip("\n")
                before, self._pending = kept, before[len(kept) :] + self._pending
            else:
                before = before.rstrip("\n")
            self._add(parts, before, is_reasoning=True)
            if marker:
                self._is_inside, self._is_outside, self._trims = False, True, True
        if self._is_outside:
            rest, self._pending = self._pending, ""
            self._add(parts, rest, is_reasoning=False)
        return parts

    def flush(self) -> list[ReasoningPart | TextPart]:
        """What was held back, at the end of the answer."""
        parts: list[ReasoningPart | TextPart] = []
        rest, self._pending = self._pending, ""
        self._add(parts, rest, is_reasoning=self._is_inside)
        return parts

    def _look_for_start(self) -> None:
        begin = self._pending.lstrip()
        if begin.startswith(OPENS):
            self._is_inside, self._pending = True, begin[len(OPENS) :]
        elif begin and not OPENS.startswith(begin):
            self._is_outside, self._trims = True, False

    def _add(self, parts: list[ReasoningPart | TextPart], text: str, *, is_reasoning: bool) -> None:
        text = text.lstrip("\n") if self._trims else text
        if text:
            self._trims = False
            parts.append(ReasoningPart(text) if is_reasoning else TextPart(text))
