"""A model's vocabulary cut down to single bytes, in which the end of a form can be searched for quickly.

A grammar reads bytes, so it accepts the same texts from any vocabulary that has all bytes. Among 49,152 tokens a mask takes up
to milliseconds, among 256 it takes ten microseconds. Where a model has no token for a byte alone, one is made up: what is found
with it is only of use if the model's own longer tokens can say it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llguidance

_TOKENIZER: Any = llguidance.LLTokenizer  # typed in part


class SpelledVocabulary:
    """All bytes and a model's special tokens, under the model's ids where it has them. Read by several threads.

    Args:
        vocabulary: The library's object for the whole vocabulary.
        eos_ids: The model's end tokens.
    """

    def __init__(self, vocabulary: Any, *, eos_ids: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self.special_ids: frozenset[int]
        """Tokens that are no text; without the end tokens."""
        self.id_of_byte: dict[int, int] = {}
        """The token of each byte; made up, behind all others, where the model has none."""
        tokens: list[bytes] = []
        special: list[int] = []
        for token_id in range(int(vocabulary.vocab_size)):
            spelled: bytes = vocabulary.decode_bytes([token_id])
            if vocabulary.is_special_token(token_id):
                special.append(token_id)
            elif len(spelled) == 1:
                self.id_of_byte.setdefault(spelled[0], token_id)
            else:
                spelled = b""
            tokens.append(spelled)
        self.own_bytes = frozenset(self.id_of_byte)
        """Those for which the model has a token."""
        for byte in range(256):
            if byte not in self.own_bytes:
                self.id_of_byte[byte] = len(tokens)
                tokens.append(bytes([byte]))
        self.special_ids = frozenset(special).difference(eos_ids)
        self._byte_of_id = {token_id: byte for byte, token_id in self.id_of_byte.items()}
        wrapped = _Wrapped(tokens, special, eos_ids[0], self.spell_bytes)
        self.tokenizer: Any = _TOKENIZER(wrapped, n_vocab=len(tokens), eos_token=list(eos_ids), slices=[])
        """The library's object."""
        self._eos_ids = frozenset(eos_ids)

    def spell(self, token_id: int) -> tuple[int, ...]:
        """A token in single bytes; special ones are themselves."""
        if token_id in self.special_ids or token_id in self._eos_ids:
            return (token_id,)
        return tuple(self.spell_bytes(self._vocabulary.decode_bytes([token_id])))

    def spell_bytes(self, text: bytes) -> list[int]:
        """A text in single bytes."""
        return [self.id_of_byte[byte] for byte in text]

    def join(self, spelled: Sequence[int]) -> list[int]:
        """The same text in tokens that are as long as possible."""
        joined: list[int] = []
        text = bytearray()
        for token_id in spelled:
            byte = self._byte_of_id.get(token_id)
            if byte is not None:
                text.append(byte)
                continue
            joined += [*self._join_bytes(bytes(text)), token_id]
            text.clear()
        return joined + self._join_bytes(bytes(text))

    def _join_bytes(self, text: bytes) -> list[int]:
        # It may begin within a character.
        head = 0
        while head < len(text) and text[head] & 0xC0 == 0x80:
            head += 1
        rest = text[head:].decode(errors="ignore")
        if rest.encode() != text[head:]:
            return self.spell_bytes(text)
        tokens: list[int] = self._vocabulary.greedy_tokenize(rest) if rest else []
        return self.spell_bytes(text[:head]) + tokens


class _Wrapped:
    """What the library reads a vocabulary from; the names are its own."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special_ids: Sequence[int], eos_id: int, encode: Any) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = eos_id
        self._encode = encode

    def __call__(self, text: str | bytes) -> list[int]:
        found: list[int] = self._encode(text.encode() if isinstance(text, str) else text)
        return found
