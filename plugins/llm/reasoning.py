"""Where a model's reasoning begins and ends in its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

ReasoningParserName = Literal["none", "think"]

OPENS = "<think>"
CLOSES = "</think>"


def detect_reasoning(template: str) -> ReasoningParserName:
    """``think`` for a template that speaks of the end of reasoning, as those of all models trained to mark it do."""
    return "think" if CLOSES in template else "none"


def opens_in_reasoning(prompt: str) -> bool:
    """Whether the rendered prompt ends within reasoning, so that the answer begins with it."""
    return prompt.rfind(OPENS) > prompt.rfind(CLOSES)


def num_reasoning_tokens(
    output_ids: Sequence[int], closing_id: int | None, *, opens_in: bool, opening_id: int | None
) -> int:
    """How many tokens of an answer are reasoning, its markers included.

    Args:
        output_ids: The generated tokens.
        closing_id: The token of `CLOSES`; None if it is several, then nothing is counted.
        opens_in: Whether the prompt ended within reasoning.
        opening_id: The token of `OPENS`.
    """
    if closing_id is None:
        return 0
    if not opens_in and opening_id not in output_ids[:2]:
        return 0
    return output_ids.index(closing_id) + 1 if closing_id in output_ids else len(output_ids)
