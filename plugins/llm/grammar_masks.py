"""Computes the masks of a step's rows while the forward pass runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import llguidance
import numpy as np

from sixfold.plugins.llm.grammar import Grammar, MaskWords
from sixfold.plugins.llm.sampler import BoolArray

_WORD_BITS = 32
_MAX_THREADS = 8

_EXECUTOR: Any = llguidance.LLExecutor  # typed in part


class PendingMasks:
    """Masks that are being computed.

    Args:
        rows: Which rows of logits they are for.
        words: Their bits, or the promise of them.
        vocab_size: Columns of the logits.
    """

    def __init__(self, rows: Sequence[int], words: Future[MaskWords] | None, vocab_size: int) -> None:
        self._rows = rows
        self._words = words
        self._vocab_size = vocab_size

    def wait(self) -> Mapping[int, BoolArray]:
        """For each row with a grammar: which tokens may come next, [vocabulary]."""
        if self._words is None:
            return {}
        raw = self._words.result().view(np.uint8)
        bits = np.unpackbits(raw, axis=1, count=self._vocab_size, bitorder="little").view(np.bool_)
        return dict(zip(self._rows, bits, strict=True))


class GrammarMasks:
    """One thread that computes masks, the rows of a step in parallel. Called by the device thread.

    One thread, because a matcher has one user at a time: masks of a step that failed are done before those of its
    repetition begin.

    Args:
        vocab_size: Columns of the logits.
        num_mask_tokens: Tokens that the grammars know; at least ``vocab_size``.
    """

    def __init__(self, *, vocab_size: int, num_mask_tokens: int) -> None:
        self._vocab_size = vocab_size
        self._num_words = -(-num_mask_tokens // _WORD_BITS)
        self._thread: ThreadPoolExecutor | None = None
        self._rows_in_parallel: Any = None

    def begin(self, grammars: Sequence[Grammar | None]) -> PendingMasks:
        """Starts computing; no grammar may change until the masks were waited for.

        Args:
            grammars: Of each row of logits; None for free text.
        """
        grammars = [grammar if grammar is not None and grammar.is_active else None for grammar in grammars]
        rows = [i for i, grammar in enumerate(grammars) if grammar is not None]
        if not rows:
            return PendingMasks((), None, self._vocab_size)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
            self._rows_in_parallel = _EXECUTOR(num_threads=_MAX_THREADS)
        chosen = [grammar for grammar in grammars if grammar is not None]
        return PendingMasks(rows, self._thread.submit(self._compute, chosen), self._vocab_size)

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _compute(self, grammars: Sequence[Grammar]) -> MaskWords:
        words = np.zeros((len(grammars), self._num_words), dtype=np.int32)
        if len(grammars) == 1:
            grammars[0].mask_into(words[0])
        else:
            for place, grammar in enumerate(grammars):
                if grammar.is_closing:
                    grammar.mask_into(words[place])
            pairs = [(grammar.matcher, place) for place, grammar in enumerate(grammars) if not grammar.is_closing]
            if pairs:
                self._rows_in_parallel.unsafe_compute_mask_ptr(
                    pairs, words.ctypes.data, self._num_words * 4, len(grammars)
                )
        return words
