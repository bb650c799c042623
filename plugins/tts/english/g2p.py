"""From normalised English text to Kokoro's phonemes (Misaki's variant of IPA): dictionary, neighbours, letters."""

from __future__ import annotations

import re
import unicodedata

from sixfold.plugins.tts.english.letters import LetterToSound
from sixfold.plugins.tts.english.lexicon import Lexicon

PAUSES = frozenset(";:,.!?—…")
"""Punctuation that Kokoro reads as pauses and melody."""

_TOKEN = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*'?|[;:,.!?—…\"()“”]")
_SPELLED_LETTERS = 5
_VOWEL_LETTERS = re.compile("[AEIOUYaeiouy]")
_VOWEL_SOUNDS = frozenset("AIOQWYaiuæɑɒɔəɛɜɪʊʌᵻɐ")

_BEFORE_VERB = frozenset(
    "to will would can could should shall may might must i you we they who don't doesn't didn't can't won't please".split()
)
_AFTER_HAVE = frozenset("have has had having was were is are be been being".split())
_BEFORE_NOUN = frozenset(
    "a an the my your his her its our their this that these those some any no each every of in on with".split()
)


class EnglishG2P:
    """Pronounces American English. Safe to call from several threads.

    Where a word's sound depends on its part of speech (*record*, *live*), the word before it decides: no tagger is needed,
    and the common cases come out right.
    """

    def __init__(self) -> None:
        self._lexicon = Lexicon()
        self._letters = LetterToSound()

    def phonemes(self, text: str) -> str:
        """The phonemes of one sentence; "" if nothing in it can be spoken.

        Every word gets a sound: from the dictionary, from its stem, letter by letter for abbreviations, or from the
        letter-to-sound model.
        """
        tokens = _TOKEN.findall(_plain(text))
        spoken: list[str] = []
        for index, token in enumerate(tokens):
            if not token[0].isalpha():
                spoken.append(token)
                continue
            before = tokens[index - 1].lower() if index else ""
            after = tokens[index + 1] if index + 1 < len(tokens) else ""
            spoken.append(self._word(token, before, ends_phrase=not after[:1].isalpha()))
        if not any(token[0].isalpha() for token in tokens):
            return ""
        return _join(tokens, _weakened(tokens, spoken))

    def _word(self, word: str, before: str, *, ends_phrase: bool) -> str:
        found = self._spelled(word)
        if found is None:
            found = self._lexicon.find(word, tag=_tag(before), ends_phrase=ends_phrase)
        if found is None:
            found = self._letters.pronounce(word.strip("'"))
        return found or "".join(map(self._lexicon.letter_name, filter(str.isalpha, word)))

    def _spelled(self, word: str) -> str | None:
        """``USB`` letter by letter; None for what is read as a word."""
        letters = word.removesuffix("'s")
        if letters in ("A", "I") or not letters.isupper() or self._lexicon.has_spelling(letters):
            return None
        if len(letters) > _SPELLED_LETTERS or (len(letters) > 3 and _VOWEL_LETTERS.search(letters)):
            return None
        names = [self._lexicon.letter_name(letter) for letter in letters if letter.isalpha()]
        # The last letter carries the stress of the whole, as in USA and HTTP.
        sound = "".join([name.replace("ˈ", "ˌ") for name in names[:-1]] + names[-1:])
        return sound + "z" if letters != word else sound


def _plain(text: str) -> str:
    """Letters without accents, one kind of apostrophe, hyphens and slashes as gaps."""
    text = text.replace("’", "'").replace("‘", "'").replace("–", "—").replace("...", "…").replace(" - ", " — ")
    decomposed = unicodedata.normalize("NFKD", text.replace("…", "\ue000"))
    without = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    for letter, plain in _LIGATURES:
        without = without.replace(letter, plain)
    return without.replace("\ue000", "…")


_LIGATURES = (
    ("ß", "ss"),
    ("æ", "ae"),
    ("Æ", "Ae"),
    ("ø", "o"),
    ("Ø", "O"),
    ("œ", "oe"),
    ("ł", "l"),
    ("đ", "d"),
    ("ð", "d"),
)


def _tag(before: str) -> str:
    if before in _AFTER_HAVE:
        return "VBN"
    if before in _BEFORE_VERB:
        return "VERB"
    return "NOUN" if before in _BEFORE_NOUN else "DEFAULT"


def _weakened(tokens: list[str], spoken: list[str]) -> list[str]:
    """Articles and *to* as they sound before a vowel, before a consonant and at the end."""
    out = list(spoken)
    for index, token in enumerate(tokens):
        word = token.lower()
        following = spoken[index + 1] if index + 1 < len(tokens) and tokens[index + 1][0].isalpha() else ""
        first = following.lstrip("ˈˌ")[:1]
        if word == "a" and following:
            out[index] = "ɐ"
        elif word == "an":
            out[index] = "ɐn"
        elif word == "the":
            out[index] = "ði" if first in _VOWEL_SOUNDS and first else "ðə"
        elif word == "to" and following:
            out[index] = "tʊ" if first in _VOWEL_SOUNDS else "tə"
        elif token == "I" and following:
            out[index] = "ˌI"
    return out


def _join(tokens: list[str], spoken: list[str]) -> str:
    """Words apart, pauses close behind the word, opening brackets and quotes before it."""
    parts: list[str] = []
    for token, sound in zip(tokens, spoken, strict=True):
        opens_tight = bool(parts) and parts[-1][-1:] in "(“"
        if parts and not opens_tight and not (token in PAUSES or token in ")”"):
            parts.append(" ")
        parts.append(sound)
    return "".join(parts)
