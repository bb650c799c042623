"""The tokens of a sequence as an array, for proposers that search them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sixfold.plugins.llm.sampling import IntArray


class TokenHistory:
    """All tokens of one sequence as an array that grows with it."""

    __slots__ = ("_ids", "_size")

    def __init__(self) -> None:
        self._ids: IntArray = np.empty(0, dtype=np.int64)
        self._size = 0

    def follow(self, token_ids: Sequence[int]) -> IntArray:
        """Takes in what was appended since the last call; returns all."""
        size = len(token_ids)
        if size > len(self._ids):
            grown = np.empty(2 * size, dtype=np.int64)
            grown[: self._size] = self._ids[: self._size]
            self._ids = grown
        self._ids[self._size : size] = token_ids[self._size :]
        self._size = size
        return self._ids[:size]
