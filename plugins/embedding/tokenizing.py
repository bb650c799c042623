"""From texts to token ids, in pool threads: one call of the Rust tokenizer a piece, which releases the GIL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from sixfold.core.errors import ContextLengthExceeded, InvalidRequest
from sixfold.plugins.embedding.packing import TokenIds
from sixfold.plugins.embedding.schema import TRUNCATE_TO_LIMIT, EmbeddingInput

_PROMPTS_FOR: Mapping[str, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names under which models keep their prompts for each ``input_type``; the same as sentence-transformers looks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The model's own prompts.

    Attributes:
        texts: By name; put before a text as they are.
        default_name: Used when a request names none.
    """

    texts: Mapping[str, str]
    default_name: str | None = None

    def choose(self, wanted: EmbeddingInput) -> str:
        """The text to put before each input, often "".

        Raises:
            InvalidRequest: Unknown name, a name for token ids, or both a name and an ``input_type``.
        """
        name = wanted.prompt_name
        if wanted.input_type is not None:
            if name is not None:
                raise InvalidRequest("Send prompt_name or input_type, not both.", param="input_type")
            name = next((n for n in _PROMPTS_FOR[wanted.input_type] if n in self.texts), None)
        elif name is not None and name not in self.texts:
            known = ", ".join(map(repr, self.texts)) or "none"
            raise InvalidRequest(f"The model has no prompt {name!r}; it has: {known}.", param="prompt_name")
        if wanted.token_ids:
            if wanted.prompt_name is not None or wanted.input_type is not None:
                raise InvalidRequest(
                    "A prompt can't be put before token ids: send texts, or ids that hold the prompt.",
                    param="prompt_name" if wanted.prompt_name is not None else "input_type",
                )
            return ""
        name = name if name is not None else self.default_name
        return self.texts[name] if name is not None else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRule:
    """How texts of one kind (query or document) are tokenized otherwise.

    Attributes:
        max_tokens: Longest text of the kind; None for the model's limit.
        min_tokens: Shorter texts get ``filler`` at their end up to this length.
        filler: Token id, seen by all other tokens.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    filler: int = 0


class TextTokenizer:
    """Turns inputs into token ids within the model's limits. Thread-safe: the Rust tokenizer's settings never change.

    Args:
        tokenizer: Without padding and truncation; owned by this object from now on.
        vocabulary_size: Ids from 0 below this are valid.
        max_tokens: Longest input, special tokens included.
        truncation_side: Which end of a text is cut.
        rules: By ``input_type``, where the model tells queries from documents.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        vocabulary_size: int,
        max_tokens: int,
        truncation_side: str = "right",
        rules: Mapping[str, TaskRule] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._truncation_side = truncation_side
        self.num_special: int = tokenizer.num_special_tokens_to_add(False)
        self._rules = rules or {}
        self.max_tokens = max_tokens

    def encode_texts(
        self,
        texts: Sequence[str],
        *,
        first_index: int,
        truncate_tokens: int | None,
        field: str = "input",
        task: str | None = None,
    ) -> list[TokenIds]:
        """Token ids of each text, special tokens included.

        Args:
            texts: Prompts already put before them.
            first_index: Index of ``texts[0]`` in the request, for messages.
            truncate_tokens: See `EmbeddingInput.truncate_tokens`.
            field: Where the texts came from, for messages.
            task: "query" or "document" where the client said so.

        Raises:
            ContextLengthExceeded: A text is over the limit and must not be cut.
            InvalidRequest: A text has no tokens at all, or no room is left for any.
        """
        rule = self._rules.get(task or "", _NO_RULE)
        longest = self.max_tokens if rule.max_tokens is None else min(rule.max_tokens, self.max_tokens)
        limit = min(self._limit(truncate_tokens), longest)
        encodings: list[Encoding] = self._tokenizer.encode_batch_fast(list(texts))
        found: list[TokenIds] = []
        for index, encoding in enumerate(encodings):
            if len(encoding) > limit:
                if truncate_tokens is None:
                    raise self._too_long(field, first_index + index, len(encoding), longest)
                encoding = self._truncated(texts[index], limit)
            ids = self._checked(np.array(encoding.ids, dtype=np.int64), field, first_index + index)
            num_missing = rule.min_tokens - len(ids)
            found.append(ids if num_missing <= 0 else np.append(ids, np.full(num_missing, rule.filler)))
        return found

    def check_ids(
        self, rows: Sequence[Sequence[int]], *, first_index: int, truncate_tokens: int | None
    ) -> list[TokenIds]:
        """Checks token ids that the client sent; too long ones are cut at the tokenizer's side.

        Raises:
            ContextLengthExceeded: As in `encode_texts`.
            InvalidRequest: An id is outside the vocabulary.
        """
        limit = self._limit(truncate_tokens)
        found: list[TokenIds] = []
        for index, row in enumerate(rows, start=first_index):
            if not 0 <= min(row) <= max(row) < self._vocabulary_size:
                raise InvalidRequest(
                    f"input[{index}] has token ids outside the model's vocabulary of {self._vocabulary_size}. "
                    "Use the model's own tokenizer, or send texts.",
                    param="input",
                )
            ids = np.array(row, dtype=np.int64)
            if len(ids) > limit:
                if truncate_tokens is None:
                    raise self._too_long("input", index, len(ids), self.max_tokens)
                ids = ids[:limit] if self._truncation_side == "right" else ids[-limit:]
            found.append(ids)
        return found

    def count_prompt(self, prompt: str) -> int:
        """Tokens that a prompt takes at the start of an input: leading special tokens count, a trailing one does not."""
        encoding: Encoding = self._tokenizer.encode(prompt)
        return len(encoding) - int(encoding.special_tokens_mask[-1]) if len(encoding) else 0

    def _limit(self, truncate_tokens: int | None) -> int:
        if truncate_tokens is None or truncate_tokens == TRUNCATE_TO_LIMIT:
            return self.max_tokens
        if truncate_tokens <= self.num_special:
            raise InvalidRequest(
                f"truncate_prompt_tokens must be -1 or above {self.num_special}, the model's special tokens.",
                param="truncate_prompt_tokens",
            )
        return min(truncate_tokens, self.max_tokens)

    def _truncated(self, text: str, limit: int) -> Encoding:
        # Cut before the special tokens are added, as the library does: a cut text keeps its last special token.
        encoding: Encoding = self._tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(limit - self.num_special, direction=self._truncation_side)
        return self._tokenizer.post_process(encoding)

    @staticmethod
    def _too_long(field: str, index: int, num_tokens: int, longest: int) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"{field}[{index}] has {num_tokens} tokens; the model takes {longest}. Send it in parts, or set "
            f"truncate_prompt_tokens to {TRUNCATE_TO_LIMIT} to embed its beginning.",
            param=field,
        )

    @staticmethod
    def _checked(ids: TokenIds, field: str, index: int) -> TokenIds:
        if len(ids) == 0:
            raise InvalidRequest(f"{field}[{index}] has no tokens. Leave it out.", param=field)
        return ids


_NO_RULE = TaskRule()


def plain_copy(tokenizer: Any) -> Tokenizer:
    """The Rust tokenizer of a transformers one, as an own copy without padding and truncation."""
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy
