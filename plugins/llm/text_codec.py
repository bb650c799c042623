"""Text to tokens and back with a model's own tokenizer and chat template; safe to use from several threads."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jinja2
from transformers import AutoTokenizer

from sixfold.core.errors import InvalidRequest
from sixfold.plugins.llm.generation import TemplateValue

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
        # A byte-level decoder only joins the bytes of tokens, so each has its text by itself.
        self._is_byte_level = type(getattr(self._backend, "decoder", None)).__name__ == "ByteLevel"
        self._pieces: dict[int, str | None] = {}  # at most one for each token of the vocabulary
        self._known_bytes: dict[int, bytes] = {}  # at most one for each token of the vocabulary
        self._bytes_of_char = _byte_level_table()
        # Names that would not reach the template but change what rendering does.
        self._reserved = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages"}
        added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
        self._added_ids = frozenset(added)
        special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self._special_ids = {str(tokenizer.convert_ids_to_tokens(i)): i for i in sorted(special)}
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
    def template(self) -> str:
        """The chat template's text, or of all if there are several; empty if there is none."""
        found: Any = self._tokenizer.chat_template
        if isinstance(found, dict):
            return "\n".join(cast("dict[str, str]", found).values())
        return str(found or "")

    def use_template(self, template: str | None) -> None:
        """Takes the template of a processor, for a tokenizer that has none. Before the codec is used by several threads."""
        self._tokenizer.chat_template = template

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, added tokens included."""
        return len(self._tokenizer)

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

    def piece(self, token_id: int) -> str | None:
        """The text of a token that is whole characters and reads the same in any context; None if `decode` must tell."""
        try:
            return self._pieces[token_id]
        except KeyError:
            found = self._pieces[token_id] = self._find_piece(token_id)
            return found

    def _find_piece(self, token_id: int) -> str | None:
        if not self._is_byte_level or token_id in self._added_ids:
            return None
        name = str(self._tokenizer.convert_ids_to_tokens(token_id) or "")
        if not all(char in self._bytes_of_char for char in name):
            return None
        text = bytes(self._bytes_of_char[char] for char in name).decode("utf-8", errors="replace")
        return None if not text or "\ufffd" in text else text

    def known_bytes(self, token_id: int) -> bytes:
        """As `token_bytes`, kept once it was asked for: for what looks at every token of an answer."""
        found = self._known_bytes.get(token_id)
        if found is None:
            found = self._known_bytes[token_id] = self.token_bytes(token_id)
        return found

    def fast_tokenizer_json(self) -> str | None:
        """The tokenizer as the tokenizers library writes it; None if it is none of that library's."""
        return None if self._backend is None else str(self._backend.to_str())

    def special_token_id(self, text: str) -> int | None:
        """The id of a special token, one that `decode` leaves out; None if this text is no such token."""
        # Not by the text alone: many tokenizers give their unknown token's id, a special one, for any text.
        return self._special_ids.get(text)

    def token_id(self, text: str) -> int | None:
        """The id of the one token that this text is; None if it is several."""
        ids = self.encode(text, add_special_tokens=False)
        return ids[0] if len(ids) == 1 else None

    def decode_with(self, markers: Sequence[str]) -> Callable[[Sequence[int]], str]:
        """As `decode`, but with these special tokens in the text."""
        kept = {token_id for token_id in map(self.special_token_id, markers) if token_id is not None}
        if not kept:
            return self.decode
        left_out = set(self._special_ids.values()) - kept
        whole: Any = self._tokenizer.decode if self._backend is None else self._backend.decode

        def decode(token_ids: Sequence[int]) -> str:
            with self._lock:
                return str(whole([i for i in token_ids if i not in left_out], skip_special_tokens=False))

        return decode

    def render_chat(
        self,
        turns: Sequence[Mapping[str, object]],
        template_kwargs: dict[str, TemplateValue],
        tools: Sequence[Mapping[str, object]] = (),
    ) -> str:
        """The conversation as the model was trained to read it, up to where its answer begins.

        Args:
            turns: Messages as templates expect them.
            template_kwargs: Further variables of the template.
            tools: For a template that knows them.

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
        try:
            rendered = self._tokenizer.apply_chat_template(
                list(turns),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=True,
                **template_kwargs,
            )
        except _RENDER_ERRORS as error:  # templates are programs of their own and complain in many ways
            raise InvalidRequest(
                f"The model's chat template rejects the conversation: {error}. Check the order and roles of messages.",
                param="messages",
            ) from error
        return str(rendered)
