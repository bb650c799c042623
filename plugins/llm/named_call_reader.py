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
        whole, num_read = self.raw + text, len(self.raw)
        head, separator, rest = whole.partition(self._separator)
        self.raw = head + separator
        name = head.partition(_CALL_ID)[0].strip()
        if separator and name in self._names:
            self._announced = name
        elif separator or not self._may_become_one(head):
            self.has_failed = True
            # At the first letter that no call has there, so that the answer reads the same in whatever pieces it comes.
            ends = (end for end in range(num_read + 1, len(head) + 1) if not self._may_become_one(head[:end]))
            end = next(ends, len(self.raw))
            self.raw, rest = whole[:end], whole[end:]
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

    def _may_become_one(self, head: str) -> bool:
        return any(self._may_become(head.lstrip(), name) for name in self._names)

    def _may_become(self, head: str, name: str) -> bool:
        if not head.startswith(name):
            return name.startswith(head)
        behind = head[len(name) :].lstrip()
        return behind.startswith(_CALL_ID) or _CALL_ID.startswith(behind) or self._separator.startswith(behind)
