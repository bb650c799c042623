"""Text to tokens and back with a model's own tokenizer and chat template; safe to use from several threads."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers import AutoTokenizer

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.generation import ChatMessage, TemplateValue

_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)


def _byte_level_table() -> dict[str, int]:
    """The printable stand-ins that byte-level vocabularies use for bytes. Source: Radford et al. 2019 (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}


class TextCodec:
    """Wraps a tokenizer.

    Fast tokenizers are called through their backend: transformers' wrapper sets truncation on it at each call, which
    fails when another thread encodes at that moment. Other tokenizers are used one thread at a time.

    Args:
        tokenizer: A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._lock = threading.Lock()
        self._bytes_of_char = _byte_level_table()
        # Names that would not reach the template but change what rendering does.
        self._reserved = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages"}
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    @classmethod
    def load(cls, path: Path) -> TextCodec:
        """Reads the tokenizer of a model folder."""
        tokenizers: Any = AutoTokenizer  # typed in part
        return cls(tokenizers.from_pretrained(path, local_files_only=True, trust_remote_code=False))

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(self._tokenizer.chat_template)

    @property
    def eos_id(self) -> int | None:
        """The tokenizer's end token."""
        eos: int | None = self._tokenizer.eos_token_id
        return eos

    @property
    def max_tokens(self) -> int | None:
        """The longest input that the tokenizer's config declares, if it does."""
        limit = self._tokenizer.model_max_length
        return int(limit) if limit and limit < 10**9 else None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        if self._backend is not None:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
            return ids
        with self._lock:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special tokens left out. Bytes that are no whole character become U+FFFD."""
        if self._backend is not None:
            text: str = self._backend.decode(token_ids, skip_special_tokens=True)
            return text
        with self._lock:
            return str(self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, also where they are only a part of a character; special tokens by name."""
        piece = str(self._tokenizer.convert_ids_to_tokens(token_id) or "")
        if piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6:
            return bytes([int(piece[3:5], 16)])
        text = self.decode([token_id])
        if text and "\ufffd" not in text:
            # A decoder may drop the space that the token begins with.
            return (" " + text if piece[:1] in ("\u2581", "\u0120") and text[:1] != " " else text).encode()
        if piece and all(char in self._bytes_of_char for char in piece):
            return bytes(self._bytes_of_char[char] for char in piece)
        return piece.encode()

    def render_chat(self, messages: Sequence[ChatMessage], template_kwargs: dict[str, TemplateValue]) -> str:
        """The conversation as the model was trained to read it, up to where its answer begins.

        Raises:
            InvalidRequest: The model has no template, or its template rejects the conversation.
        """
        if not self.has_chat_template:
            raise InvalidRequest(
                "This model has no chat template. Use /v1/completions with a prompt in the model's own format."
            )
        for name in template_kwargs:
            if name in self._reserved:
                param = f"chat_template_kwargs.{name}"
                raise InvalidRequest(f"{param!r} is not a variable of the template but set by the server.", param=param)
        turns = [
            {"role": m.role, "content": m.content} | ({"name": m.name} if m.name is not None else {}) for m in messages
        ]
        try:
            rendered = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **template_kwargs
            )
        except _RENDER_ERRORS as error:  # templates are programs of their own and complain in many ways
            raise InvalidRequest(
                f"The model's chat template rejects the conversation: {error}. Check the order and roles of messages.",
                param="messages",
            ) from error
        return str(rendered)
