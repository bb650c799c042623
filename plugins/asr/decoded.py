"""What Whisper's decoder has found in a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sixfold.plugins.asr.token_search import Search, Texts


@dataclass(frozen=True, slots=True)
class Decoded:
    """The text of one window.

    Attributes:
        token_ids: Behind the prompt, without the end.
        total_logprob: Of all these and the end, if it came.
        silence: Probability that there is no speech, as the model says it at the start.
    """

    token_ids: tuple[int, ...]
    total_logprob: float
    silence: float


def answers(
    texts: Texts, silence: Sequence[float], search: Search, *, num_prompt: int, limit: int, end: int
) -> list[list[Decoded]]:
    """The texts of each window, as the search has left them.

    Args:
        texts: Of at least as many windows.
        silence: By window.
        search: How they were found: of beams the best is given, else all.
        num_prompt: Tokens of the prompts.
        limit: Length of prompt and text at which texts were cut.
        end: The token of the end.
    """
    if search == "beams":
        scores = texts.kept_score[:, :1] * texts.kept_tokens[:, :1]
        ids, totals, counts = texts.kept_ids[:, :1], scores, texts.kept_tokens[:, :1]
    else:
        ids, totals = texts.ids, texts.total
        counts = torch.full_like(texts.latest, limit - num_prompt)
    rows, sums, lengths = (value.cpu().numpy() for value in (ids, totals, counts))
    found: list[list[Decoded]] = []
    for window, silent in enumerate(silence):
        mine: list[Decoded] = []
        for row, total, length in zip(rows[window], sums[window], lengths[window], strict=True):
            text: list[int] = row[num_prompt : num_prompt + int(length)].tolist()
            text = text[: text.index(end)] if end in text else text
            mine.append(Decoded(tuple(text), float(total), silent))
        found.append(mine)
    return found
