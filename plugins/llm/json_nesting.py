"""Where in a JSON text one is, by what was read so far."""

from __future__ import annotations


class JsonNesting:
    """Follows brackets and strings through a JSON text that arrives in pieces. It does not check the text."""

    def __init__(self) -> None:
        self.depth = 0
        """How many objects and arrays are open."""
        self.in_string = False
        """Whether the last character lies within a string (its closing quotation mark does not)."""
        self.escapes = False
        """Whether the last character was a backslash, so that the next one has no meaning for the structure."""

    def push(self, char: str) -> None:
        """Reads one character; those that have no meaning for the structure may be left out, save after a backslash."""
        if self.escapes:
            self.escapes = False
        elif self.in_string:
            self.escapes = char == "\\"
            self.in_string = char != '"'
        elif char == '"':
            self.in_string = True
        elif char in "{[":
            self.depth += 1
        elif char in "}]":
            self.depth -= 1
