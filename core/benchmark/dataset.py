"""What is sent: drawn texts of wanted lengths, or the lines of a file."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sixfold.core.benchmark.workload import Sample
from sixfold.core.errors import UsageError

_WORDS = tuple(
    "the of and to in is you that it he was for on are with as his they be at one have this from or had by but what some"
    " we can out other were all there when up use your how said an each she which do their time if will way about many".split()
)
"""Each is one token of most vocabularies, so a text of n words has about n tokens."""


@dataclass(frozen=True, slots=True)
class Length:
    """How long texts are: each length from ``low`` to ``high`` is as likely."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Length:
        """Reads ``128`` or ``64:256``.

        Raises:
            ValueError: It is neither.
        """
        low, colon, high = text.partition(":")
        found = cls(int(low), int(high) if colon else int(low))
        if not 1 <= found.low <= found.high:
            raise ValueError(f"{text} is no length: give one such as 128, or a range such as 64:256")
        return found

    def draw(self, rng: random.Random) -> int:
        """One of them."""
        return rng.randint(self.low, self.high)


def draw_samples(
    count: int, *, input_tokens: Length, output_tokens: Length, shared_prefix_tokens: int, seed: int, edition: int = 0
) -> list[Sample]:
    """Texts of random words, the same for the same seed; no two begin alike but for the shared prefix.

    Args:
        count: How many.
        input_tokens: Of each, about, the prefix included.
        output_tokens: Most tokens of each answer.
        shared_prefix_tokens: Words at the beginning of all: what a prefix cache finds again.
        seed: Of all that is drawn.
        edition: Other editions have the same lengths and other words.
    """
    rng, words_rng = random.Random(seed), random.Random(f"{seed}, edition {edition}")
    prefix = [words_rng.choice(_WORDS) for _word in range(shared_prefix_tokens)]
    samples: list[Sample] = []
    for _sample in range(count):
        own = max(1, input_tokens.draw(rng) - shared_prefix_tokens)
        words = [*prefix, *(words_rng.choice(_WORDS) for _word in range(own))]
        samples.append(Sample(text=" ".join(words), max_output_tokens=output_tokens.draw(rng)))
    return samples


def read_samples(path: Path, *, default_output_tokens: int) -> list[Sample]:
    """Reads a JSONL file: each line a whole request body, a text, or an object with ``text`` (or ``prompt``) and
    ``output_tokens``.

    Raises:
        UsageError: It can't be read; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--dataset {path}: {error.strerror}. Give a JSONL file.") from error
    samples: list[Sample] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                samples.append(_sample(json.loads(line), default_output_tokens))
            except ValueError as error:
                raise UsageError(f"--dataset {path}, line {number}: {error}.") from error
    if not samples:
        raise UsageError(f"--dataset {path} has no lines. Each is a JSON text or object.")
    return samples


def _sample(value: Any, default_output_tokens: int) -> Sample:
    if isinstance(value, str):
        return Sample(text=value, max_output_tokens=default_output_tokens)
    if not isinstance(value, dict):
        raise ValueError("is neither a text nor an object")
    fields = cast(dict[str, Any], value)
    text = fields.get("text", fields.get("prompt"))
    if isinstance(text, str) and fields.keys() <= {"text", "prompt", "output_tokens"}:
        return Sample(text=text, max_output_tokens=int(fields.get("output_tokens", default_output_tokens)))
    return Sample(body=fields)
