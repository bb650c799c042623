"""How families of models write their calls of tools, and how to tell from a model's template which one it was taught."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass
from typing import Literal

ToolParserName = Literal["none", "hermes", "llama3_json", "mistral", "mistral_args"]

_ID_CHARS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One way to write calls.

    Attributes:
        name: As vLLM names the parser of this format.
        opens: What announces a call; empty where a call is an answer that begins with an object.
        optional_opens: What may stand before a call whose ``opens`` is empty.
        closes: What ends a call; empty where the object's end does.
        arguments_key: The member of the object that holds the arguments.
        is_list: Whether the calls are the items of one JSON list.
        separator: What stands between name and arguments where the name is no member of an object.
    """

    name: ToolParserName
    opens: str = ""
    optional_opens: str = ""
    closes: str = ""
    arguments_key: str = "arguments"
    is_list: bool = False
    separator: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """What must reach the parser even where the tokenizer counts it among its special tokens."""
        return tuple(marker for marker in (self.opens, self.optional_opens, self.separator, self.closes) if marker)

    def new_call_id(self) -> str:
        """An id that the family's template will take back."""
        if self.name in ("mistral", "mistral_args"):  # their templates check for nine letters and digits
            return "".join(secrets.choice(_ID_CHARS) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


HERMES = ToolFormat(name="hermes", opens="<tool_call>", closes="</tool_call>")
"""Hermes, Qwen and many others. Also what a model is asked for whose template knows no tools."""

LLAMA3 = ToolFormat(name="llama3_json", optional_opens="<|python_tag|>", arguments_key="parameters")
MISTRAL = ToolFormat(name="mistral", opens="[TOOL_CALLS]", is_list=True)
MISTRAL_ARGS = ToolFormat(name="mistral_args", opens="[TOOL_CALLS]", separator="[ARGS]")
"""Mistral's newer models: each call has the marker, and its name stands outside of the object."""

TOOL_FORMATS: dict[str, ToolFormat] = {format.name: format for format in (HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS)}


def detect_tool_format(template: str) -> ToolFormat | None:
    """The format that a chat template shows the model; None if the template knows no tools, or an unknown way."""
    if "tools" not in template:
        return None
    if MISTRAL.opens in template:
        return MISTRAL_ARGS if MISTRAL_ARGS.separator in template else MISTRAL
    if HERMES.opens in template and "<function=" not in template:
        return HERMES
    if LLAMA3.optional_opens in template or '"parameters": dictionary' in template:
        return LLAMA3
    return None
