"""Keeps an answer within a grammar: which tokens may come next, and when the answer is complete.

The work is llguidance's: it walks an Earley parser over a derivative-based lexer and the vocabulary's trie, so a grammar is
not compiled to tables ahead of its use.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import llguidance
import numpy as np
import numpy.typing as npt

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.closing import Closing, checked
from sixfold.plugins.llm.closing_search import ClosingSearch, Ending
from sixfold.plugins.llm.reasoning import CLOSES
from sixfold.plugins.llm.spelled_vocabulary import SpelledVocabulary
from sixfold.plugins.llm.text_codec import TextCodec

_LOG = logging.getLogger(__name__)

MaskWords = npt.NDArray[np.int32]

_MAX_CACHED = 64

# Typed in part.
_MATCHER: Any = llguidance.LLMatcher
_TOKENIZER: Any = llguidance.LLTokenizer
_LIMITS: Any = llguidance.LLParserLimits(verbose_errors=False)  # errors are shown to clients: no state, no grammar


class Matchers(NamedTuple):
    """One grammar at its beginning.

    Attributes:
        matcher: The library's object over the model's vocabulary.
        closing: Watches that the answer can be closed.
    """

    matcher: Any
    closing: Closing


class Grammar:
    """Where one sequence is in its grammar. Made in the pool, then owned by the device thread.

    Args:
        matchers: Of its own.
    """

    __slots__ = ("_closing", "_matcher")

    def __init__(self, matchers: Matchers) -> None:
        self._matcher = matchers.matcher
        self._closing = matchers.closing

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
        if self._closing.rest is not None:
            return not self._closing.rest
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def is_closing(self) -> bool:
        """Whether the answer is brought to its end because its tokens run out; what comes is not the model's choice."""
        return self._closing.rest is not None

    @property
    def failure(self) -> str | None:
        """Why the matcher gave up: a limit of its own, or a token that it never allowed; None as long as it works."""
        return _reason(self._matcher) if self._matcher.is_error() else None

    def mask_into(self, words: MaskWords) -> None:
        """Writes one bit per token, 1 where it may come next, lowest bit first. Changes nothing else."""
        rest = self._closing.rest
        if rest:
            words[:] = 0
            words.view(np.uint8)[rest[0] >> 3] = 1 << (rest[0] & 7)
            return
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)

    def forced(self) -> list[int]:
        """The tokens that must come next, where the grammar leaves no choice; they are not taken yet."""
        if self._closing.rest is not None:
            return list(self._closing.rest)
        tokens: list[int] = self._matcher.compute_ff_tokens()
        return tokens

    def accept(self, token_id: int, num_left: int) -> bool:
        """Takes the chosen token; one that is not allowed shows in `failure`.

        Args:
            token_id: The token.
            num_left: How many tokens may follow it.

        Returns:
            False if it is not taken, because the form could not be closed any more: what is `forced` must come instead.
        """
        if not self._closing.allows(token_id, self._matcher, num_left):
            return False
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
        self._search: ClosingSearch | None = None
        if self._vocabulary is not None:
            # Whether a model marks its reasoning does not matter: elsewhere the hint leads nowhere.
            self._search = ClosingSearch(SpelledVocabulary(self._vocabulary, eos_ids=eos_ids), hints=(CLOSES,))
        self._kept: OrderedDict[str, _Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, text: str, *, param: str) -> Grammar:
        """A grammar at its beginning; see `matchers`."""
        return Grammar(self.matchers(text, param=param))

    def matchers(self, text: str, *, param: str) -> Matchers:
        """The library's objects for a grammar, at its beginning.

        Args:
            text: In llguidance's notation; see `grammar_text`.
            param: What to name in an error.

        Raises:
            InvalidRequest: The text is wrong or asks for what can't be enforced.
        """
        with self._lock:
            kept = self._kept.get(text)
            if kept is not None:
                self._kept.move_to_end(text)
                return kept.copy()
        if self._vocabulary is None or self._search is None:
            raise InvalidRequest(
                f"{param!r} is not supported with this model: its tokenizer is of a kind that grammars can't read.",
                param=param,
                code="unsupported_parameter",
            )
        matcher = _MATCHER(self._vocabulary, text, log_level=0, limits=_LIMITS)  # releases the GIL
        if matcher.is_error():
            raise InvalidRequest(f"{param!r} can't be enforced: {_reason(matcher)}", param=param)
        spelled = _MATCHER(self._search.vocabulary.tokenizer, text, log_level=0, limits=_LIMITS)
        compiled = _Compiled(matcher, spelled, self._search, checked(self._search.find(spelled).ending, matcher))
        with self._lock:
            self._kept[text] = compiled
            while len(self._kept) > _MAX_CACHED:
                self._kept.popitem(last=False)
            return compiled.copy()


class _Compiled(NamedTuple):
    """What is kept of a grammar: two matchers, and how an answer may end that says nothing."""

    matcher: Any
    spelled: Any
    search: ClosingSearch
    ending: Ending | None

    def copy(self) -> Matchers:
        return Matchers(self.matcher.deep_copy(), Closing(self.search, self.spelled.deep_copy(), self.ending))


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
