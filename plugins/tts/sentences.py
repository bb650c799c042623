"""Cuts a text into the sentences that are synthesised one by one: the first one short, so that sound begins soon."""

from __future__ import annotations

import re

_BOUNDARY = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][\"')\]”’]))\s+(?=[\"'(\[“‘]?[^\W_a-z])|(?<=[。！？])|\s*\n\s*")
_CLAUSE = re.compile(r"(?<=[,;:—–])\s+")
_NO_END = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|Jr|Sr|vs|No|Fig|Gen|Rev|Hon|Capt|Lt|Sgt|approx|e\.g|i\.e|cf|al)|(?:^|[\s(])[A-Z])\.$"
)
"""What ends in a full stop and does not end a sentence: titles and initials."""

MAX_FIRST_CHARACTERS = 90
"""A longer first sentence is cut at a comma or the like: about two seconds of work until the first sound on one core."""
_MIN_FIRST_CHARACTERS = 15
_MIN_CHARACTERS = 16
"""Shorter sentences are joined to the next: models speak single words badly, and a call for each costs more."""


def split_sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text in order, without the white space around them; empty only for a text of white space."""
    sentences: list[str] = []
    held = ""
    for part in filter(None, (part.strip() for part in _BOUNDARY.split(text))):
        held = f"{held} {part}" if held else part
        if _NO_END.search(held) or len(held) < _MIN_CHARACTERS:
            continue
        sentences.append(held)
        held = ""
    if held:
        sentences.append(held)
    if sentences:
        sentences[:1] = _split_first(sentences[0])
    return tuple(sentences)


def _split_first(sentence: str) -> tuple[str, ...]:
    """At the first pause that leaves a piece worth speaking; whole if it is short or has no pause."""
    if len(sentence) <= MAX_FIRST_CHARACTERS:
        return (sentence,)
    for match in _CLAUSE.finditer(sentence):
        if match.start() > MAX_FIRST_CHARACTERS:
            break
        if match.start() >= _MIN_FIRST_CHARACTERS and len(sentence) - match.end() >= _MIN_FIRST_CHARACTERS:
            return (sentence[: match.start()], sentence[match.end() :])
    return (sentence,)


def split_at(text: str, limit: int) -> tuple[str, ...]:
    """Cuts phonemes or letters into parts of at most ``limit``: at a pause, else at a space, else anywhere."""
    parts: list[str] = []
    while len(text) > limit:
        window = text[:limit]
        cut = max((window.rfind(pause) + 1 for pause in ".!?…;:—,"), default=0)
        if cut < limit // 3:
            cut = window.rfind(" ") + 1
        cut = cut if cut >= limit // 8 else limit
        parts.append(text[:cut].strip())
        text = text[cut:].strip()
    parts.append(text)
    return tuple(filter(None, parts))
