"""Turns tokens into text as they come, without ever showing half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"

# Tokens of the prompt that are decoded along: enough for any decoder that strips or adds a space at the start of a text.
_NUM_CONTEXT_TOKENS = 5

# A character has at most four bytes, so at most four byte tokens; what is still broken after this many never heals.
_MAX_PENDING_TOKENS = 8


class Detokenizer:
    """Text of one growing sequence. One per sequence.

    A decoder may treat the start of a text differently (drop a space) and gives U+FFFD for bytes that are not yet a
    whole character. So new text is the difference between decoding a short window with and without the new tokens, and
    it is held back while it ends in U+FFFD.

    Args:
        decode: Token ids to text, special tokens skipped; called often with a handful of tokens.
        prompt_ids: The tokens before the first generated one.
        piece: The text of a token that is whole characters and the same in any context, which most are; else None.
    """

    __slots__ = ("_decode", "_is_whole", "_num_shown", "_piece", "_shown", "_window")

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        prompt_ids: Sequence[int],
        piece: Callable[[int], str | None] = lambda _token_id: None,
    ) -> None:
        self._decode = decode
        self._piece = piece
        self._window = list(prompt_ids[-_NUM_CONTEXT_TOKENS:])
        self._num_shown = len(self._window)
        self._shown = decode(self._window) if self._window else ""
        self._is_whole = not self._shown.endswith(_REPLACEMENT)  # nothing is held back, nor broken

    def push(self, token_id: int) -> str:
        """The characters that became whole with this token; often one word, sometimes nothing."""
        piece = self._piece(token_id) if self._is_whole else None
        if piece is not None:
            self._window, self._num_shown, self._shown = [token_id], 1, piece
            return piece
        self._is_whole = False
        self._window.append(token_id)
        text = self._decode(self._window)
        num_pending = len(self._window) - self._num_shown
        if text.endswith(_REPLACEMENT) and num_pending < _MAX_PENDING_TOKENS:
            return ""
        new = text[len(self._shown) :]
        if not new:
            # A special token or bytes without text: it stays in the window, but the window must not grow forever.
            if num_pending < _MAX_PENDING_TOKENS:
                return ""
        self._advance()
        return new

    def flush(self) -> str:
        """What whole characters are left at the end of the answer; the bytes of an unfinished one are dropped."""
        if len(self._window) == self._num_shown:
            return ""
        new = self._decode(self._window)[len(self._shown) :].rstrip(_REPLACEMENT)
        self._advance()
        return new

    def _advance(self) -> None:
        # The tokens just shown become the context of the next ones. They end on a whole character, so the window
        # decodes to the same characters again.
        del self._window[: self._num_shown]
        self._num_shown = len(self._window)
        self._shown = self._decode(self._window)
        self._is_whole = not self._shown.endswith(_REPLACEMENT)
