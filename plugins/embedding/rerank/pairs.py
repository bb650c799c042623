"""From pairs of texts to token ids with their segments, in pool threads, cut by transformers' ``longest_first`` rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from sixfold.core.errors import ContextLengthExceeded, InvalidRequest
from sixfold.plugins.embedding.packing import TokenIds
from sixfold.plugins.embedding.rerank.schema import ScoreInput
from sixfold.plugins.embedding.schema import TRUNCATE_TO_LIMIT


@dataclass(frozen=True, slots=True)
class PairTokens:
    """One query and one document as a cross-encoder reads them.

    Attributes:
        token_ids: Special tokens included; never empty.
        type_ids: 0 for tokens of the query, 1 for tokens of the document, as the tokenizer's template says.
    """

    token_ids: TokenIds
    type_ids: NDArray[np.int64]


def longest_first(first: int, second: int, limit: int) -> tuple[int, int]:
    """Tokens to keep of two texts so that both together have at most ``limit``; the longer one gives first.

    Source: the ``LongestFirst`` strategy of Hugging Face's tokenizers, as transformers' fast tokenizers use it.
    """
    if first + second <= limit:
        return first, second
    shorter = min(first, second)
    longer = shorter if shorter > limit else max(shorter, limit - shorter)
    if shorter + longer > limit:
        shorter = limit // 2
        longer = limit - shorter
    return (longer, shorter) if first > second else (shorter, longer)


class PairTokenizer:
    """Tokenizes pairs within the model's limits. Thread-safe: the Rust tokenizer's settings never change.

    Args:
        tokenizer: Without padding and truncation; owned by this object from now on.
        max_tokens: Longest pair, special tokens included.
        truncation_side: Which end of a text is cut.
        prompt: Put before each query.
        truncates: Whether pairs over the limit are cut when the request says nothing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        truncation_side: str = "right",
        prompt: str = "",
        truncates: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._truncation_side = truncation_side
        self._prompt = prompt
        self._truncates = truncates
        self._num_special: int = tokenizer.num_special_tokens_to_add(True)
        self.max_tokens = max_tokens

    def encode(self, wanted: ScoreInput, start: int, stop: int) -> list[PairTokens]:
        """The pairs of the documents ``start`` to ``stop``.

        Raises:
            ContextLengthExceeded: A pair is over the limit and must not be cut.
            InvalidRequest: A pair has no tokens, or no room is left for any.
        """
        limit = self._limit(wanted)
        pairs = [(self._prompt + wanted.query_of(index), wanted.documents[index]) for index in range(start, stop)]
        encodings: list[Encoding] = self._tokenizer.encode_batch_fast(pairs)
        found: list[PairTokens] = []
        for index, (pair, encoding) in enumerate(zip(pairs, encodings, strict=True), start=start):
            if wanted.max_document_tokens is not None or len(encoding) > limit:
                encoding = self._cut(pair, wanted.max_document_tokens, None if self._refuses(wanted) else limit)
            if len(encoding) > limit:
                raise self._too_long(wanted, index, len(encoding))
            if not len(encoding):
                raise InvalidRequest(
                    f"{wanted.documents_field}[{index}] and its query have no tokens. Leave it out.",
                    param=wanted.documents_field,
                )
            found.append(
                PairTokens(np.array(encoding.ids, dtype=np.int64), np.array(encoding.type_ids, dtype=np.int64))
            )
        return found

    def _refuses(self, wanted: ScoreInput) -> bool:
        return wanted.truncate_tokens is None and not self._truncates

    def _limit(self, wanted: ScoreInput) -> int:
        if wanted.truncate_tokens is None or wanted.truncate_tokens == TRUNCATE_TO_LIMIT:
            return self.max_tokens
        if wanted.truncate_tokens <= self._num_special + 1:
            raise InvalidRequest(
                f"truncate_prompt_tokens must be -1 or above {self._num_special + 1}: the model's special tokens and one "
                "token of each text.",
                param="truncate_prompt_tokens",
            )
        return min(wanted.truncate_tokens, self.max_tokens)

    def _cut(self, pair: tuple[str, str], max_document_tokens: int | None, limit: int | None) -> Encoding:
        query, document = (self._tokenizer.encode(text, add_special_tokens=False) for text in pair)
        if max_document_tokens is not None:
            document.truncate(max_document_tokens, direction=self._truncation_side)
        if limit is not None:
            kept = longest_first(len(query), len(document), limit - self._num_special)
            query.truncate(kept[0], direction=self._truncation_side)
            document.truncate(kept[1], direction=self._truncation_side)
        return self._tokenizer.post_process(query, document)

    def _too_long(self, wanted: ScoreInput, index: int, num_tokens: int) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"{wanted.documents_field}[{index}] and its query have {num_tokens} tokens; the model takes "
            f"{self.max_tokens} for both. Send it in parts, or set truncate_prompt_tokens to {TRUNCATE_TO_LIMIT} to cut "
            "the longer of both.",
            param=wanted.documents_field,
        )
