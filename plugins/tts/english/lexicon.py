"""The pronouncing dictionary that Kokoro was trained with: the word lists of ``misaki`` (Apache-2.0), read as data."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import cast

Entry = str | dict[str, str | None]
"""A pronunciation, or one for each part of speech (``DEFAULT``, ``VERB``, ``NOUN``...; ``None`` where nothing follows)."""

_SIBILANTS = frozenset("szʃʒʧʤ")
_VOICELESS = frozenset("ptkfθʔ")
_FLAPPED_AFTER = frozenset("AIOWYiuæɑəɛɪɹʊʌ")
"""Sounds after which an American t between vowels is a flap."""
_VOWEL_LETTERS = frozenset("aeiou")


class Lexicon:
    """Words and their sounds; inflected forms that the lists lack are made from their stems.

    Made once a process: 180,000 words in about 60 MB. Never changes, so any thread may read it.
    """

    def __init__(self) -> None:
        folder = files("misaki") / "data"
        silver: dict[str, Entry] = json.loads((folder / "us_silver.json").read_text(encoding="utf-8"))
        gold: dict[str, Entry] = json.loads((folder / "us_gold.json").read_text(encoding="utf-8"))
        self._entries: dict[str, Entry] = silver | gold

    def letter_name(self, letter: str) -> str:
        """How the letter itself is said, with a stress."""
        sound = "ˈA" if letter.upper() == "A" else cast("str", self._entries[letter.upper()])
        return sound if "ˈ" in sound else stressed(sound)

    def has_spelling(self, word: str) -> bool:
        """Whether the lists hold just this spelling, e.g. ``NASA``."""
        return word in self._entries

    def find(self, word: str, *, tag: str, ends_phrase: bool) -> str | None:
        """Kokoro's phonemes of a word, or None if neither it nor its stem is known.

        Args:
            word: Letters and apostrophes.
            tag: The part of speech that the neighbours suggest, ``DEFAULT`` for no idea.
            ends_phrase: Nothing follows before the next pause; small words are stressed there.
        """
        for form in dict.fromkeys((word, word.lower(), word.capitalize())):
            entry = self._entries.get(form)
            if entry is not None:
                sound = _choose(entry, tag, ends_phrase)
                if sound is not None:
                    return sound
        return self._inflected(word.lower(), tag, ends_phrase)

    def _inflected(self, word: str, tag: str, ends_phrase: bool) -> str | None:
        if len(word) < 3:
            return None
        for suffix, join in (("'s", _with_s), ("s'", _with_s), ("ing", _with_ing), ("ed", _with_ed), ("s", _with_s)):
            if not word.endswith(suffix) or (suffix == "s" and word.endswith("ss")):
                continue
            for stem in _stems(word, suffix):
                sound = self.find(stem, tag=tag, ends_phrase=ends_phrase) if len(stem) > 1 else None
                if sound is not None:
                    return join(sound)
        return None


def stressed(sound: str) -> str:
    """The sound with a main stress before its first vowel; unchanged if it has none."""
    for index, letter in enumerate(sound):
        if letter in "AIOWYaiuæɑɔəɛɜɪʊʌᵻ":
            return sound[:index] + "ˈ" + sound[index:]
    return sound


def _choose(entry: Entry, tag: str, ends_phrase: bool) -> str | None:
    if isinstance(entry, str):
        return entry
    if ends_phrase and "None" in entry:
        return entry["None"]
    general = {"VBD": "VERB", "VBN": "VERB", "VBP": "VERB"}.get(tag, tag)
    return entry.get(tag, entry.get(general, entry.get("DEFAULT")))


def _stems(word: str, suffix: str) -> tuple[str, ...]:
    stem = word[: -len(suffix)]
    if suffix in ("'s", "s'"):
        return (stem,)
    if suffix == "s":
        return (stem, stem[:-1] + "y") if stem.endswith("ie") else (stem, stem.removesuffix("e"))
    undoubled = (stem[:-1],) if len(stem) > 2 and stem[-1] == stem[-2] and stem[-1] not in _VOWEL_LETTERS else ()
    with_y = (stem[:-1] + "y",) if suffix == "ed" and stem.endswith("i") else ()
    return (stem, stem + "e", *undoubled, *with_y)


def _with_s(sound: str) -> str:
    if sound[-1] in _SIBILANTS:
        return sound + "ᵻz"
    return sound + ("s" if sound[-1] in _VOICELESS else "z")


def _with_ed(sound: str) -> str:
    if sound[-1] == "t":
        flap = len(sound) > 1 and sound[-2] in _FLAPPED_AFTER
        return sound[:-1] + "ɾᵻd" if flap else sound + "ᵻd"
    if sound[-1] == "d":
        return sound + "ᵻd"
    return sound + ("t" if sound[-1] in _VOICELESS | _SIBILANTS - frozenset("zʒʤ") else "d")


def _with_ing(sound: str) -> str:
    if len(sound) > 1 and sound[-1] == "t" and sound[-2] in _FLAPPED_AFTER:
        return sound[:-1] + "ɾɪŋ"
    return sound + "ɪŋ"
