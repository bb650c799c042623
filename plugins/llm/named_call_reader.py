"""Reads one call of a tool whose name stands before its arguments, from text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Collection

from sixfold.plugins.llm.json_nesting import JsonNesting

_CALL_ID = "[CALL_ID]"
"""What some models write between name and arguments, followed by an id of their own; ours goes to the client."""


class NamedCallReader:
    """As `CallReader`, for ``NAME`` or ``NAME[CALL_ID]ID``, a separator, and a JSON object. One per call.

    Args:
        names: The tools that may be called.
        separator: Stands before the object.
    """

    def __init__(self, names: Collection[str], separator: str) -> None:
        self._names = names
        self._separator = separator
        self._announced: str | None = None  # the name, until the object shows that it is a call
        self._nesting = JsonNesting()
        self._arguments: list[str] = []  # not given away yet
        self.raw = ""
        """All that was read, until it was known to be a call."""
        self.name: str | None = None
        """The tool's name, once it is known."""
        self.is_done = False
        """Whether the object is complete."""
        self.has_failed = False
        """Whether it can't be a call."""

    def push(self, text: str) -> str:
        """Reads on; returns what is left once `is_done` or `has_failed`."""
        if self._announced is None:
            text = self._read_head(text)
        if self._announced is None:
            return text
        for place, char in enumerate(text):
            if self.name is None and not self._begins(char):
                if self.has_failed:
                    return text[place:]
                continue
            self._arguments.append(char)
            self._nesting.push(char)
            if self._nesting.depth == 0:
                self.is_done = True
                return text[place + 1 :]
        return ""

    def take_arguments(self) -> str:
        """The arguments' text that has come since the last call."""
        taken, self._arguments = "".join(self._arguments), []
        return taken

    def _read_head(self, text: str) -> str:
        """Takes what belongs to the name; returns what is behind the separator."""
        whole = self.raw + text
        head, separator, rest = whole.partition(self._separator)
        self.raw = head + separator
        name = head.partition(_CALL_ID)[0].strip()
        if separator and name in self._names:
            self._announced = name
        else:
            self.has_failed = bool(separator) or not any(self._may_become(head.lstrip(), n) for n in self._names)
        return rest

    def _begins(self, char: str) -> bool:
        """Whether the object begins with this character, which makes it a call; space may be before it."""
        if char == "{":
            self.name = self._announced
        elif char.isspace():
            self.raw += char
        else:
            self.has_failed = True
        return char == "{"

    def _may_become(self, head: str, name: str) -> bool:
        with_id = name + _CALL_ID
        return head.startswith(with_id) or with_id.startswith(head) or (name + self._separator).startswith(head)
