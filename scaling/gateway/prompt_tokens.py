"""Token ids of prompts, so that they can be looked up among the blocks that replicas have announced."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

import msgspec

from sixfold.core.errors import ConfigError
from sixfold.scaling.gateway.inbound import Prompt, TokenIds

_LOG = logging.getLogger(__name__)

_MAX_BYTES = 256 * 1024
"""Of a prompt; a longer one is routed by its text, since tokenizing it would hold all others up."""
_KEPT_PROMPTS = 256


def load_token_ids(tokenizers: Mapping[str, str]) -> TokenIds:
    """Loads the tokenizers of the settings.

    Args:
        tokenizers: A folder or Hugging Face id, by model name.

    Raises:
        ConfigError: One can't be loaded.
    """
    loaded = {model: _load(model, source) for model, source in tokenizers.items()}

    def token_ids(model: str, prompt: Prompt) -> tuple[int, ...] | None:
        encode = loaded.get(model)
        messages, text, tools = bytes(prompt.messages), bytes(prompt.prompt), bytes(prompt.tools)
        if encode is None or len(messages) + len(text) + len(tools) > _MAX_BYTES:
            return None
        try:
            return encode(messages, text, tools)
        except Exception as error:  # a template of a stranger's may raise anything; routing then goes by the text
            _LOG.debug("a prompt for %s is not tokenized: %s", model, error)
            return None

    return token_ids


def _load(model: str, source: str) -> Callable[[bytes, bytes, bytes], tuple[int, ...] | None]:
    try:
        transformers: Any = importlib.import_module("transformers")  # untyped, and slow to import
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source)
    except ModuleNotFoundError as missing:
        raise ConfigError(f"routing.tokenizers needs {missing.name}: pip install 'sixfold[llm]'.") from missing
    except (OSError, ValueError) as error:
        raise ConfigError(f"routing.tokenizers.{model}: {source!r} can't be loaded: {error}") from error

    @lru_cache(maxsize=_KEPT_PROMPTS)
    def encode(messages: bytes, text: bytes, tools: bytes) -> tuple[int, ...] | None:
        if messages:
            rendered = tokenizer.apply_chat_template(
                msgspec.json.decode(messages),
                tools=msgspec.json.decode(tools) if tools else None,
                add_generation_prompt=True,
                tokenize=False,
            )
            return tuple(cast("list[int]", tokenizer.encode(rendered, add_special_tokens=False)))
        if text.startswith(b'"'):
            return tuple(cast("list[int]", tokenizer.encode(msgspec.json.decode(text, type=str))))
        return None

    return encode
