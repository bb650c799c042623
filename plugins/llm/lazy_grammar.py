"""A grammar that begins with a call: what is before it is free, and the call is held to its tool's schema."""

from __future__ import annotations

from sixfold.plugins.llm.call_watch import CallWatch
from sixfold.plugins.llm.grammar import Grammar, Matchers


class LazyGrammar(Grammar):
    """Where one sequence is in its free text, and from the begin of a call on in the grammar of calls.

    Args:
        matchers: Of the grammar of calls, at its beginning; of this sequence alone.
        watch: Tells when a call begins.
    """

    __slots__ = ("_is_active", "_is_trial", "_watch")

    def __init__(self, matchers: Matchers, watch: CallWatch) -> None:
        super().__init__(matchers)
        self._watch = watch
        self._is_active = False
        self._is_trial = False  # active for one token, the one that is chosen again

    @property
    def is_active(self) -> bool:
        """Whether a call has begun."""
        return self._is_active

    @property
    def is_complete(self) -> bool:
        """See `Grammar.is_complete`; free text never is."""
        return self._is_active and super().is_complete

    @property
    def failure(self) -> str | None:
        """See `Grammar.failure`."""
        return super().failure if self._is_active else None

    def forced(self) -> list[int]:
        """See `Grammar.forced`."""
        return super().forced() if self._is_active else []

    def accept(self, token_id: int, num_left: int) -> bool:
        """Takes the chosen token.

        Returns:
            False if it is not taken: as `Grammar.accept`, or if a call begins with it and already goes on as none may; then it
            must be chosen again among those that the grammar allows.
        """
        if self._is_active and not self._is_trial:
            return super().accept(token_id, num_left)
        begun = self._watch.push(token_id)
        if self._is_trial:
            return self._end_trial(token_id, num_left, is_call=begun is not None)
        if begun is None:
            return True
        num_taken = int(self.matcher.try_consume_tokens(begun))
        if num_taken < len(begun) - 1:
            # The marker is spelled as the model's own template never does; its call is read as it is written.
            self._watch.stop()
            return True
        self._closing.follow(begun[:num_taken])
        self._is_active = True
        self._is_trial = num_taken < len(begun)
        if self._is_trial:
            self._watch.pop()
        return not self._is_trial

    def _end_trial(self, token_id: int, num_left: int, *, is_call: bool) -> bool:
        """The token was chosen among those with which either a call begins as it may, or none does yet."""
        self._is_trial = False
        self._is_active = is_call
        if is_call:
            return super().accept(token_id, num_left)
        self.matcher.reset()
        self._closing.reset()
        return True
