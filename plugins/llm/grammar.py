"""Keeps an answer within a grammar: which tokens may come next, and when the answer is complete.

The work is llguidance's: it walks an Earley parser over a derivative-based lexer and the vocabulary's trie, so a grammar is
not compiled to tables ahead of its use.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import Any

import llguidance
import numpy as np
import numpy.typing as npt

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.text_codec import TextCodec

_LOG = logging.getLogger(__name__)

MaskWords = npt.NDArray[np.int32]

_MAX_CACHED = 64

# Typed in part.
_MATCHER: Any = llguidance.LLMatcher
_TOKENIZER: Any = llguidance.LLTokenizer
_LIMITS: Any = llguidance.LLParserLimits(verbose_errors=False)  # errors are shown to clients: no state, no grammar


class Grammar:
    """Where one sequence is in its grammar. Made in the pool, then owned by the device thread.

    Args:
        matcher: A matcher of its own.
    """

    __slots__ = ("_matcher",)

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def matcher(self) -> Any:
        """The library's object, for computing masks of several sequences at once."""
        return self._matcher

    @property
    def is_active(self) -> bool:
        """Whether it says anything of the next token."""
        return True

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end of the answer may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def failure(self) -> str | None:
        """Why the matcher gave up: a limit of its own, or a token that it never allowed; None as long as it works."""
        return _reason(self._matcher) if self._matcher.is_error() else None

    def mask_into(self, words: MaskWords) -> None:
        """Writes one bit per token, 1 where it may come next, lowest bit first. Changes nothing else."""
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)

    def forced(self) -> list[int]:
        """The tokens that must come next, where the grammar leaves no choice; they are not taken yet."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        return tokens

    def accept(self, token_id: int) -> bool:
        """Takes the chosen token; one that is not allowed shows in `failure`. True: it need not be chosen again."""
        self._matcher.consume_token(token_id)
        return True


class GrammarCompiler:
    """Makes grammars for one model's vocabulary. Called by several pool threads at once.

    A compiled grammar is kept by its text, and each sequence gets a copy: they share what the lexer has learned.

    Args:
        codec: The model's tokenizer.
        vocab_size: Rows of the output head.
        eos_ids: The model's end tokens.
    """

    def __init__(self, codec: TextCodec, *, vocab_size: int, eos_ids: tuple[int, ...]) -> None:
        self._vocabulary = _read_vocabulary(codec, vocab_size, eos_ids)
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, text: str, *, param: str) -> Grammar:
        """A grammar at its beginning; see `matcher`."""
        return Grammar(self.matcher(text, param=param))

    def matcher(self, text: str, *, param: str) -> Any:
        """The library's object for a grammar, at its beginning.

        Args:
            text: In llguidance's notation; see `grammar_text`.
            param: What to name in an error.

        Raises:
            InvalidRequest: The text is wrong or asks for what can't be enforced.
        """
        with self._lock:
            matcher = self._kept.get(text)
            if matcher is not None:
                self._kept.move_to_end(text)
                return matcher.deep_copy()
        if self._vocabulary is None:
            raise InvalidRequest(
                f"{param!r} is not supported with this model: its tokenizer is of a kind that grammars can't read.",
                param=param,
                code="unsupported_parameter",
            )
        matcher = _MATCHER(self._vocabulary, text, log_level=0, limits=_LIMITS)  # releases the GIL
        if matcher.is_error():
            raise InvalidRequest(f"{param!r} can't be enforced: {_reason(matcher)}", param=param)
        with self._lock:
            self._kept[text] = matcher
            while len(self._kept) > _MAX_CACHED:
                self._kept.popitem(last=False)
            return matcher.deep_copy()


def _reason(matcher: Any) -> str:
    return str(matcher.get_error()).replace("<non-verbose/>", "").strip()[:500]


def _read_vocabulary(codec: TextCodec, vocab_size: int, eos_ids: tuple[int, ...]) -> Any | None:
    text = codec.fast_tokenizer_json()
    if text is None or not eos_ids:
        return None
    try:
        return _TOKENIZER(text, n_vocab=max(vocab_size, codec.num_tokens), eos_token=list(eos_ids))
    except ValueError as error:  # a tokenizer without a byte-level or byte-fallback decoder
        _LOG.warning("Grammars are not available with this tokenizer: %s", error)
        return None
