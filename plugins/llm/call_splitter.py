"""Keeps the text of an answer and its calls of tools apart, as they come."""

from __future__ import annotations

from collections.abc import Collection

from sixfold.plugins.llm.answer_parts import ArgumentsPart, CallStart, Part, TextPart
from sixfold.plugins.llm.call_reader import CallReader
from sixfold.plugins.llm.markers import split_at_marker
from sixfold.plugins.llm.named_call_reader import NamedCallReader
from sixfold.plugins.llm.tool_formats import ToolFormat

_BETWEEN = " \r\n\t,;[]"
"""What may stand between two calls, or around them where they are a list."""


class CallSplitter:
    """One per answer. What looks like a call but is none, or calls an unknown tool, is text.

    Args:
        format: How the model writes calls.
        names: The tools that may be called.
    """

    def __init__(self, format: ToolFormat, names: Collection[str]) -> None:
        self._format = format
        self._names = names
        self._pending = ""
        self._reader: CallReader | NamedCallReader | None = None
        self._announced = ""  # the text before the call that is being read, should it be none
        self._has_started = False
        self._is_closing = False
        self._is_plain = False  # nothing but text follows
        self._is_between = False  # nothing but space was read since a call
        self._num_calls = 0

    def push(self, text: str) -> list[Part]:
        """The parts that became certain."""
        parts: list[Part] = []
        self._pending += text
        before: object = None
        while (
            self._pending and (state := (len(self._pending), self._reader, self._is_closing, self._is_plain)) != before
        ):
            before = state
            if self._is_closing:
                self._skip_close()
            elif self._reader is not None:
                self._read_call(parts, self._reader)
            elif self._is_plain:
                parts.append(TextPart(self._take()))
            else:
                self._find_call(parts)
        return parts

    def flush(self) -> list[Part]:
        """What was held back, at the end of the answer. A call that was cut stays as far as it came."""
        rest = self._take()
        if self._reader is not None:
            rest = "" if self._has_started else self._announced + self._reader.raw + rest
        elif self._is_closing or (self._is_between and not rest.strip(_BETWEEN)):
            rest = ""
        return [TextPart(rest)] if rest else []

    def _find_call(self, parts: list[Part]) -> None:
        format = self._format
        if format.opens and not (format.is_list and self._num_calls):
            text, marker, self._pending = split_at_marker(self._pending, (format.opens,))
            if self._is_between and not text.strip():
                if not marker:
                    self._pending = text + self._pending  # perhaps the space before a further call
                text = ""
            if text:
                parts.append(TextPart(text))
                self._is_between = False
            if marker:
                self._begin(marker)
            return
        # A call without a marker of its own: the answer is an object, or goes on after a separator.
        begin = self._pending.lstrip(_BETWEEN if self._num_calls else None)
        optional = format.optional_opens
        if optional and begin.startswith(optional):
            self._pending = begin[len(optional) :]
            self._begin(optional)
        elif begin.startswith("{"):
            self._begin(self._pending[: len(self._pending) - len(begin)])
            self._pending = begin
        elif begin and not (optional and optional.startswith(begin)):
            self._is_plain = True

    def _begin(self, announced: str) -> None:
        separator = self._format.separator
        self._reader = NamedCallReader(self._names, separator) if separator else CallReader(self._names)
        self._announced = announced
        self._has_started = False

    def _read_call(self, parts: list[Part], reader: CallReader | NamedCallReader) -> None:
        if self._format.is_list and not reader.raw:
            begin = self._pending.lstrip(_BETWEEN)
            self._announced += self._pending[: len(self._pending) - len(begin)]
            self._pending = begin
        self._pending = reader.push(self._pending)
        if reader.has_failed and reader.name is None:
            parts.append(TextPart(self._announced + reader.raw))
            self._is_between = False
            self._reader = None
            self._is_plain = not self._format.opens
            return
        if reader.name is not None and not self._has_started:
            self._has_started = True
            parts.append(CallStart(self._num_calls, self._format.new_call_id(), reader.name))
            self._num_calls += 1
            self._is_between = True
        if self._has_started and (arguments := reader.take_arguments()):
            parts.append(ArgumentsPart(self._num_calls - 1, arguments))
        if reader.is_done or reader.has_failed:
            self._reader = None
            self._is_closing = bool(self._format.closes)

    def _skip_close(self) -> None:
        """Drops the end marker of a call; a model that forgets it loses nothing."""
        begin = self._pending.lstrip()
        if begin.startswith(self._format.closes):
            self._pending = begin[len(self._format.closes) :]
            self._is_closing = False
        elif not self._format.closes.startswith(begin):
            self._is_closing = False
            self._pending = begin

    def _take(self) -> str:
        text, self._pending = self._pending, ""
        return text
