"""Reads one call of a tool, a JSON object with a name and arguments, from text that arrives in pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

from sixfold.plugins.llm.json_nesting import JsonNesting

_PLAIN = re.compile(r'[^"\\{}\[\],:]+')  # a run without any of the characters that JSON's structure is made of
_ARGUMENTS = ("arguments", "parameters")


class CallReader:
    """Gives the name as soon as it is complete, and the arguments' text as it comes. One per call.

    Until the name is known nothing is given away, so that what turns out to be no call can still be shown as text.

    Args:
        names: The tools that may be called.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._nesting = JsonNesting()
        self._key: str | None = None  # of the member whose value is being read
        self._part: list[str] = []  # of a key, or of a value that is read as a whole
        self._streams = False  # whether the value is the arguments' object
        self._has_arguments = False
        self._arguments: list[str] = []  # not given away yet
        self._raw: list[str] = []
        self.name: str | None = None
        """The tool's name, once it is known."""
        self.is_done = False
        """Whether the object is complete."""
        self.has_failed = False
        """Whether it can't be a call."""

    @property
    def raw(self) -> str:
        """All that was read, until the name was known."""
        return "".join(self._raw)

    def push(self, text: str) -> str:
        """Reads on; returns what is left once `is_done` or `has_failed`.

        What has no meaning for the structure is read in runs, so that long arguments cost the serving loop little.
        """
        place = 0
        while place < len(text):
            if self._nesting.depth == 0 and text[place] != "{" and not text[place].isspace():
                self.has_failed = True
                return text[place:]  # with what may begin another call
            if self._nesting.escapes:
                end = place + 1
                self._keep(text[place])
                self._nesting.push(text[place])
            else:
                found = _PLAIN.match(text, place) if self._nesting.depth else None
                end = found.end() if found else place + 1
                self._read(text[place:end], is_structure=not found)
            if self.name is None:
                self._raw.append(text[place:end])
            place = end
            if self.is_done or self.has_failed:
                return text[place:]
        return ""

    def take_arguments(self) -> str:
        """The arguments' text that has come since the last call; nothing before the name is known."""
        if self.name is None:
            return ""
        taken, self._arguments = "".join(self._arguments), []
        return taken

    def _read(self, text: str, *, is_structure: bool) -> None:
        at_top = self._nesting.depth == 1 and not self._nesting.in_string
        if self._nesting.depth == 0:
            self._nesting.push(text)
        elif not is_structure:
            self._keep(text)
        elif at_top and text == ":" and self._key is None:
            self._key, self._part = _text_of(self._part), []
            self.has_failed = self._key is None
        elif at_top and text in ",}":
            self._end_member()
            if text == "}":
                self._end_object()
        else:
            self._keep(text)
            self._nesting.push(text)
            if self._streams and self._nesting.depth == 1:
                self._streams = False
            self.has_failed = self._nesting.depth == 0  # an array's end ended the object

    def _keep(self, text: str) -> None:
        if not self._part and not self._streams:
            text = text.lstrip()
            if not text:
                return
            self._streams = text == "{" and self._key in _ARGUMENTS and not self._has_arguments
            self._has_arguments = self._has_arguments or self._streams
        (self._arguments if self._streams else self._part).append(text)

    def _end_member(self) -> None:
        if self._key == "name" and self.name is None:  # a second one changes no call that has begun
            name = _text_of(self._part)
            if name in self._names:
                self.name = name
            else:
                self.has_failed = True
        elif self._key in _ARGUMENTS and self._part and not self._has_arguments:
            # Some models write the object as a string, and null for no arguments.
            self._arguments = [_text_of(self._part) or "{}"]
            self._has_arguments = True
        self._key, self._part = None, []

    def _end_object(self) -> None:
        if self.name is None:
            self.has_failed = True
        if not self._has_arguments:
            self._arguments = ["{}"]
        self.is_done = not self.has_failed


def _text_of(json_text: Sequence[str]) -> str | None:
    """The text that a JSON string stands for; None if it is none."""
    try:
        value: object = json.loads("".join(json_text))
    except ValueError:
        return None
    return value if isinstance(value, str) else None
