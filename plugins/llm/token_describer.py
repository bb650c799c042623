"""Log probabilities in the words of the wire: tokens by their text and bytes."""

from __future__ import annotations

from sixfold.plugins.llm.generation import TokenLogprob, TopToken
from sixfold.plugins.llm.logprobs import RowLogprobs
from sixfold.plugins.llm.text_codec import TextCodec

# JSON knows no infinity.
_LEAST_LOGPROB = -9999.0


class TokenDescriber:
    """Of one model.

    Args:
        codec: Its tokenizer.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec

    def describe(self, token_id: int, logprobs: RowLogprobs) -> TokenLogprob:
        """A token, and the likeliest ones at its place."""
        return TokenLogprob(
            chosen=self._top_token(token_id, logprobs.chosen),
            top=tuple(self._top_token(i, value) for i, value in zip(logprobs.top_ids, logprobs.top, strict=True)),
        )

    def _top_token(self, token_id: int, logprob: float) -> TopToken:
        raw = self._codec.token_bytes(token_id)
        return TopToken(text=raw.decode("utf-8", errors="replace"), raw=raw, logprob=max(logprob, _LEAST_LOGPROB))
