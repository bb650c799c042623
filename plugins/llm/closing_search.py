"""Finds the shortest text with which an answer may end, from wherever it is in its grammar.

The search knows no JSON, only which bytes may come next; what it prefers among them are habits of formal texts: what closes
comes before what goes on, and of bytes that do the same one or two stand for all.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sixfold.plugins.llm.spelled_vocabulary import SpelledVocabulary

MAX_NODES = 600
"""Positions that are looked at, best first, 10 to 30 us each; beyond that the first choice is taken everywhere."""
_MAX_LENGTH = 4096
"""Bytes of the longest end that is looked for."""
_MANY = 40
"""More bytes than that may come next only in free text."""
_MAX_LETTERS = 16
_MAX_OTHERS = 6
_FIRST = b'}],:"['

_Mask = npt.NDArray[np.bool_]


class Ending(NamedTuple):
    """A text with which an answer may end.

    Attributes:
        spelled: In single bytes.
        tokens: The same in as few tokens as were found.
    """

    spelled: tuple[int, ...]
    tokens: tuple[int, ...]


class Found(NamedTuple):
    """What a search came to.

    Attributes:
        ending: None if there is none.
        num_looked: Positions that were looked at: what the search cost.
    """

    ending: Ending | None
    num_looked: int


NO_TEXT = Ending((), ())
"""The answer may end as it is."""


class ClosingSearch:
    """One per model. Called by the device thread and by pool threads.

    Args:
        vocabulary: The model's, in single bytes.
        hints: Texts that end free text in which all bytes may come, such as the mark after reasoning.
    """

    def __init__(self, vocabulary: SpelledVocabulary, *, hints: Sequence[str] = ()) -> None:
        self.vocabulary = vocabulary
        self._bytes = np.array(sorted(vocabulary.id_of_byte))
        self._is_own = np.array([byte in vocabulary.own_bytes for byte in self._bytes.tolist()])
        self._ids = [vocabulary.id_of_byte[byte] for byte in self._bytes.tolist()] + sorted(vocabulary.special_ids)
        self._word_of_id = np.array(self._ids) >> 3
        self._bit_of_id = (np.array(self._ids) & 7).astype(np.uint8)
        self._quote = vocabulary.spell_bytes(b'"')
        self._hints = [vocabulary.spell_bytes(hint.encode()) for hint in hints]

    def find(self, matcher: Any, *, max_nodes: int = MAX_NODES) -> Found:
        """The way to the end that has the fewest bytes, as far as was looked.

        Args:
            matcher: The library's object over the spelled vocabulary; stays where it is.
            max_nodes: Positions that are looked at for the shortest; beyond that the first way is taken.
        """
        spelled, num_looked = self._best_first(matcher, max_nodes)
        if spelled is None:
            return Found(None, num_looked)
        return Found(Ending(tuple(spelled), tuple(self.vocabulary.join(spelled))), num_looked + len(spelled))

    def _best_first(self, matcher: Any, max_nodes: int) -> tuple[list[int] | None, int]:
        # Invariant: no position on the heap is reached by fewer bytes than the one that was taken last, so the first that may
        # end is the nearest. Positions that are as far and may go on with the same bytes are taken for one.
        numbers = count()
        heap: list[tuple[int, int, tuple[int, ...], Any, bytes]] = [(0, next(numbers), (), matcher.deep_copy(), b"")]
        seen: set[tuple[int, bytes]] = set()
        for num_looked in range(1, max_nodes + 1):
            if not heap:
                return None, num_looked
            length, _, spelled, position, barred = heapq.heappop(heap)
            if may_end(position):
                return list(spelled), num_looked
            allowed = self._allowed(position)
            mask = allowed.tobytes()
            if position.is_error() or mask == barred or (length, mask) in seen:
                continue
            seen.add((length, mask))
            for text in reversed(self._steps(position, allowed)):  # of those as far, the last one is taken first
                there = position.deep_copy()
                if there.try_consume_tokens(text) == len(text):
                    # A quotation mark after which all goes on as before ends no string: this is free text.
                    barred = mask if text == self._quote else b""
                    heapq.heappush(heap, (length + len(text), -next(numbers), (*spelled, *text), there, barred))
        furthest = max(heap, default=None)
        return None if furthest is None else self._straight_on(list(furthest[2]), furthest[3]), max_nodes

    def _straight_on(self, spelled: list[int], position: Any) -> list[int] | None:
        while len(spelled) < _MAX_LENGTH:
            if may_end(position):
                return spelled
            steps = self._steps(position, self._allowed(position))
            if position.is_error() or not steps or position.try_consume_tokens(steps[0]) != len(steps[0]):
                return None
            spelled += steps[0]
        return None

    def _allowed(self, position: Any) -> _Mask:
        """Which of the bytes, and then of the special tokens, may come next."""
        words = np.frombuffer(position.compute_bitmask(), dtype=np.uint8)
        allowed: _Mask = (words[self._word_of_id] >> self._bit_of_id & 1).view(np.bool_)
        return allowed

    def _steps(self, position: Any, allowed: _Mask) -> list[list[int]]:
        """What to try next, the most promising first."""
        places: list[int] = np.flatnonzero(allowed).tolist()
        marks = [[self._ids[place]] for place in places if place >= len(self._bytes)]
        possible = allowed[: len(self._bytes)]
        own = possible & self._is_own
        # What the model can't say byte by byte it may be able to say in one token; where there is another way, that is taken.
        values: list[int] = self._bytes[own if own.any() else possible].tolist()
        if not values:
            return marks
        if not marks and len(values) == 1:
            forced: list[int] = position.compute_ff_tokens()
            return [forced or [self.vocabulary.id_of_byte[values[0]]]]
        steps = marks + [[self.vocabulary.id_of_byte[byte]] for byte in choose_bytes(values)]
        return steps + (self._hints if len(values) > _MANY else [])


def may_end(matcher: Any) -> bool:
    """Whether the answer is complete as it is."""
    return not matcher.is_error() and bool(matcher.is_stopped() or matcher.is_accepting())


def choose_bytes(allowed: Sequence[int]) -> list[int]:
    """Those of the bytes that may come next which are worth a try, the most promising first.

    Args:
        allowed: In rising order; at least one.
    """
    plain = [byte for byte in allowed if 0x20 < byte < 0x7F and byte != 0x5C] or list(allowed)
    if len(allowed) > _MANY:
        return [next((byte for byte in b'"a0' if byte in plain), plain[0])]
    digits = [byte for byte in plain if 0x30 <= byte <= 0x39]
    letters = [byte for byte in plain if chr(byte).isalpha()]
    others = sorted({*plain}.difference(digits, letters), key=lambda byte: (_FIRST.find(byte) + 1 or 99, byte))
    if digits or len(letters) > _MAX_LETTERS:
        letters = sorted({*letters[:1], *letters[-1:]})
    return others[:_MAX_OTHERS] + sorted({*digits[:1], *digits[-1:]}) + letters
