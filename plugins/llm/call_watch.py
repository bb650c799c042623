"""Watches an answer, token by token, for the begin of a call, in a model that may call but need not."""

from __future__ import annotations

from collections.abc import Callable

from sixfold.plugins.llm.reasoning import CLOSES, OPENS
from sixfold.plugins.llm.tool_formats import ToolFormat


class CallWatch:
    """One per answer.

    A call begins with the format's marker, wherever it stands. Where a format has none, an answer that begins with an object
    is one. What the model only thinks of is no call.

    Args:
        format: How the model writes calls.
        token_bytes: The bytes of a token, special ones by name.
        thinks: Whether the model marks its reasoning.
        opens_in_reasoning: Whether the prompt ended within it.
    """

    def __init__(
        self,
        format: ToolFormat,
        token_bytes: Callable[[int], bytes],
        *,
        thinks: bool,
        opens_in_reasoning: bool,
    ) -> None:
        self._marker = format.opens.encode()
        self._beginnings = (b"{", *([format.optional_opens.encode()] if format.optional_opens else []))
        self._token_bytes = token_bytes
        self._may_open_reasoning = thinks and not opens_in_reasoning
        self._is_reasoning = opens_in_reasoning
        self._text = bytearray()
        self._tokens: list[tuple[int, int]] = []  # where each begins in the text, and its id
        self._searched = 0  # no marker begins before this
        self._is_over = False

    def stop(self) -> None:
        """There is no call in this answer."""
        self._is_over = True

    def push(self, token_id: int) -> list[int] | None:
        """Takes the next token; once a call begins, the tokens from the one on in which it does, else None."""
        if self._is_over:
            return None
        self._tokens.append((len(self._text), token_id))
        self._text += self._token_bytes(token_id)
        if self._may_open_reasoning and not self._is_past_opening():
            return None
        if self._is_reasoning and not self._is_past_reasoning():
            return None
        found = self._find_marker() if self._marker else self._find_beginning()
        if found is None:
            return None
        first = max(place for place, (begin, _) in enumerate(self._tokens) if begin <= found)
        return [token for _, token in self._tokens[first:]]

    def pop(self) -> None:
        """Takes the last token back, with which a call began."""
        begin, _ = self._tokens.pop()
        del self._text[begin:]

    def _is_past_opening(self) -> bool:
        begin = bytes(self._text).lstrip()
        if len(begin) < len(OPENS) and OPENS.encode().startswith(begin):
            return False  # it may yet be the marker
        self._may_open_reasoning = False
        self._is_reasoning = begin.startswith(OPENS.encode())
        return True

    def _is_past_reasoning(self) -> bool:
        end = self._text.find(CLOSES.encode(), self._searched)
        if end < 0:
            self._searched = max(0, len(self._text) - len(CLOSES) + 1)
            return False
        self._searched = end + len(CLOSES)
        self._is_reasoning = False
        return True

    def _find_marker(self) -> int | None:
        found = self._text.find(self._marker, self._searched)
        if found < 0:
            self._searched = max(self._searched, len(self._text) - len(self._marker) + 1)
            return None
        return found

    def _find_beginning(self) -> int | None:
        rest = bytes(self._text[self._searched :])
        begin = rest.lstrip()
        for wanted in self._beginnings:
            if begin.startswith(wanted):
                return len(self._text) - len(begin)
        if begin and not any(wanted.startswith(begin) for wanted in self._beginnings):
            self.stop()
        return None
