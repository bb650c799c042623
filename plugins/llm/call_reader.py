"""Reads one call of a tool, a JSON object with a name and arguments, from text that arrives in pieces."""

from __future__ import annotations

import json
from collections.abc import Collection

_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")


class CallReader:
    """Gives the name as soon as it is complete, and the arguments' text as it comes. One per call.

    Until the name is known nothing is given away, so that what turns out to be no call can still be shown as text.

    Args:
        names: The tools that may be called.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._key: str | None = None  # of the member whose value is being read
        self._part = ""  # of a key, or of a value that is read as a whole
        self._streams = False  # whether the value is the arguments' object
        self._has_arguments = False
        self._arguments = ""  # not given away yet
        self.raw = ""
        """All that was read."""
        self.name: str | None = None
        """The tool's name, once it is known."""
        self.is_done = False
        """Whether the object is complete."""
        self.has_failed = False
        """Whether it can't be a call."""

    def push(self, text: str) -> str:
        """Reads on; returns what is left once `is_done` or `has_failed`."""
        for place, char in enumerate(text):
            self.raw += char
            self._read(char)
            if self.is_done or self.has_failed:
                return text[place + 1 :]
        return ""

    def take_arguments(self) -> str:
        """The arguments' text that has come since the last call; nothing before the name is known."""
        if self.name is None:
            return ""
        taken, self._arguments = self._arguments, ""
        return taken

    def _read(self, char: str) -> None:
        at_top = self._depth == 1 and not self._in_string
        if self._depth == 0:
            if char == "{":
                self._depth = 1
            elif char not in _SPACE:
                self.has_failed = True
        elif at_top and char == ":" and self._key is None:
            self._key, self._part = _text_of(self._part), ""
            self.has_failed = self._key is None
        elif at_top and char in ",}":
            self._end_member()
            if char == "}":
                self._end_object()
        else:
            self._keep(char)
            self._track(char)
            if self._streams and self._depth == 1:
                self._streams = False

    def _keep(self, char: str) -> None:
        if not self._part and not self._streams:
            if char in _SPACE:
                return
            self._streams = char == "{" and self._key in _ARGUMENTS and not self._has_arguments
            self._has_arguments = self._has_arguments or self._streams
        if self._streams:
            self._arguments += char
        else:
            self._part += char

    def _track(self, char: str) -> None:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1

    def _end_member(self) -> None:
        if self._key == "name":
            self.name = _text_of(self._part)
            self.has_failed = self.name not in self._names
        elif self._key in _ARGUMENTS and self._part and not self._has_arguments:
            # Some models write the object as a string, and null for no arguments.
            self._arguments = _text_of(self._part) or "{}"
            self._has_arguments = True
        self._key, self._part = None, ""

    def _end_object(self) -> None:
        if self.name is None:
            self.has_failed = True
        if not self._has_arguments:
            self._arguments = "{}"
        self.is_done = not self.has_failed


def _text_of(json_text: str) -> str | None:
    """The text that a JSON string stands for; None if it is none."""
    try:
        value: object = json.loads(json_text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
