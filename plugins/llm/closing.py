"""Closes a form before its answer's tokens run out, so that what is cut is whole all the same.

From the moment on in which it could become tight, a way to the end is known that fits: before each token it is either still a
way from there, or another one is searched for. A token after which none would fit is not taken; the way that is known is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sixfold.plugins.llm.closing_search import MAX_NODES, NO_TEXT, ClosingSearch, Ending, may_end

_WATCHED_TOKENS = 192
"""With so many tokens to spare beyond the way to the end, not every token is looked at."""
_SHARE_UNWATCHED = 8
"""An eighth of what there is to spare may then go by: what closing costs would have to rise by 7 tokens with each."""
_MAX_WORK = 4000
"""Of one answer, in positions of a short one, some 15 us each. It is counted and not timed: equal requests get equal answers.
One that has cost so much, as very long answers and those with very long ends do, is closed at once; its neighbours wait no more.
"""
_TOKENS_PER_WORK = 300
"""A position of an answer this long costs twice as much: copies of it are as long as it is."""


class Closing:
    """Watches one answer's way through its grammar. Made in the pool, then owned by the device thread.

    Args:
        search: Finds ways to the end.
        spelled: The library's object for the grammar over the spelled vocabulary, at its beginning; of this answer alone.
        ending: From there; None if it is not known.
    """

    __slots__ = (
        "_due_left",
        "_ending",
        "_is_over",
        "_num_tokens",
        "_search",
        "_spelled",
        "_unread",
        "_vocabulary",
        "_work",
        "rest",
    )

    def __init__(self, search: ClosingSearch, spelled: Any, ending: Ending | None = None) -> None:
        self._vocabulary = search.vocabulary
        self._search = search
        self._spelled = spelled
        self._ending = ending  # from before the next token; None where it must be searched for
        self._unread: list[int] = []  # tokens that `_spelled` has not taken yet
        self._due_left: int | None = None  # no token is looked at while more may follow
        self._is_over = False
        self._num_tokens = 0
        self._work = 0.0
        self.rest: list[int] | None = None
        """The tokens that must still come, once the form is being closed."""

    def follow(self, token_ids: Sequence[int]) -> None:
        """Takes tokens that were not asked about."""
        self._ending = None
        self._unread += token_ids

    def reset(self) -> None:
        """Takes all tokens back; none of them may have been refused."""
        self._spelled.reset()
        self._unread.clear()
        self._ending = self._due_left = None
        self._is_over = False

    def allows(self, token_id: int, matcher: Any, num_left: int) -> bool:
        """Takes the next token.

        Args:
            token_id: The token.
            matcher: The library's object over the model's own vocabulary, as it is before the token.
            num_left: How many tokens may follow this one.

        Returns:
            False if the form could not be closed any more after it: it is not taken, and `rest` must come instead.
        """
        if self.rest is not None:
            return self._go_on(token_id)
        if self._is_over:
            return True
        self._num_tokens += 1
        if self._due_left is None:
            self._begin(num_left)
        if self._due_left is None or num_left > self._due_left:
            self._ending = None
            self._unread.append(token_id)
            return True
        return self._decide(token_id, matcher, num_left)

    def _begin(self, num_left: int) -> None:
        known = self._ending
        if known is not None and len(known.tokens) > num_left + 1:
            self._is_over = True  # it never fits, and is cut as free text would be
        self._plan(num_left + 1, 0 if known is None else len(known.tokens))

    def _plan(self, num_left: int, num_needed: int) -> None:
        spare = num_left - num_needed
        self._due_left = num_left if spare < _WATCHED_TOKENS else num_left - spare // _SHARE_UNWATCHED

    def _decide(self, token_id: int, matcher: Any, num_left: int) -> bool:
        after = matcher.deep_copy()
        if not after.consume_token(token_id):
            return True  # not for us to say: the grammar will find it, too
        spelled = self._vocabulary.spell(token_id)
        self._charge(1)
        ending = self._still(spelled, after, num_left)
        if ending is None and self._work > _MAX_WORK:
            return self._close(matcher, num_left + 1)
        if ending is not None:
            self._unread.append(token_id)
        else:
            self._read()
            position = self._spelled.deep_copy()
            if position.try_consume_tokens(list(spelled)) == len(spelled):
                ending = checked(self._find(position), after)
            if ending is None or len(ending.tokens) > num_left:
                return self._close(matcher, num_left + 1)
            self._spelled = position
        self._ending = ending
        self._plan(num_left, len(ending.tokens))
        return True

    def _still(self, spelled: tuple[int, ...], after: Any, num_left: int) -> Ending | None:
        """A way from after the token that needs no search; None if there is none that fits."""
        if may_end(after):
            return NO_TEXT
        known = self._ending
        if known is None:
            return None
        if spelled and known.spelled[: len(spelled)] == spelled:
            rest = known.spelled[len(spelled) :]
            known = checked(Ending(rest, tuple(self._vocabulary.join(rest))), after)
        elif not _leads_to_an_end(after, known.tokens):
            return None
        return known if known is not None and len(known.tokens) <= num_left else None

    def _close(self, matcher: Any, num_left: int) -> bool:
        """Begins to close before the token that was not taken; gives up where that never fitted."""
        known = self._ending or checked(self._find(self._spelled), matcher)
        if known is None or len(known.tokens) > num_left:
            self._is_over = True
            return True
        self.rest = list(known.tokens)
        return False

    def _find(self, position: Any) -> Ending | None:
        left = int((_MAX_WORK - self._work) / self._weight())
        found = self._search.find(position, max_nodes=max(1, min(MAX_NODES, left)))
        self._charge(found.num_looked)
        return found.ending

    def _charge(self, num_looked: int) -> None:
        self._work += num_looked * self._weight()

    def _weight(self) -> float:
        return 1.0 + self._num_tokens / _TOKENS_PER_WORK

    def _go_on(self, token_id: int) -> bool:
        assert self.rest is not None
        if self.rest[:1] != [token_id]:
            return False
        del self.rest[0]
        return True

    def _read(self) -> None:
        for token_id in self._unread:
            self._spelled.try_consume_tokens(list(self._vocabulary.spell(token_id)))
        self._unread.clear()


def checked(ending: Ending | None, position: Any) -> Ending | None:
    """The same way to the end, if the model's own vocabulary can go it from a position; None if it can't.

    Args:
        ending: Found in single bytes, some of which may be no tokens of the model.
        position: The library's object over the model's vocabulary; stays where it is.
    """
    if ending is None or _leads_to_an_end(position, ending.tokens):
        return ending
    by_bytes = ending._replace(tokens=ending.spelled)
    return by_bytes if _leads_to_an_end(position, by_bytes.tokens) else None


def _leads_to_an_end(position: Any, tokens: Sequence[int]) -> bool:
    there = position.deep_copy()
    return there.try_consume_tokens(list(tokens)) == len(tokens) and may_end(there)
