"""Pronounces words that no dictionary has, so that an unknown name is spoken as it is spelled and never left out."""

from __future__ import annotations

import base64
import threading
from importlib.resources import files

import pycrfsuite

_CONTEXT_LETTERS = 3
_KOKORO = {
    "aɪ": "I",
    "aʊ": "W",
    "eɪ": "A",
    "oʊ": "O",
    "ɔɪ": "Y",
    "t͡ʃ": "ʧ",
    "d͡ʒ": "ʤ",
    "ɚ": "əɹ",
}
"""IPA of the model's labels in the letters of Kokoro's phoneme set, where the two differ."""
_STRESSES = "ˈˌ"


class LetterToSound:
    """A conditional random field over the letters of a word: the English model of ``gruut-lang-en`` (MIT).

    Safe to call from several threads.
    """

    def __init__(self) -> None:
        self._tagger = pycrfsuite.Tagger()
        self._tagger.open(str(files("gruut_lang_en") / "g2p" / "model.crf"))
        self._lock = threading.Lock()  # a tagger holds the sequence that it tags

    def pronounce(self, word: str) -> str:
        """Kokoro's phonemes of a word of the letters a-z and apostrophes; never empty for one with a letter."""
        letters = word.lower()
        with self._lock:
            labels: list[str] = self._tagger.tag([_features(letters, index) for index in range(len(letters))])
        sounds = [sound for label in labels for sound in base64.b64decode(label).decode().split("|")]
        return "".join(_to_kokoro(sound) for sound in sounds if sound != "_")


def _features(letters: str, index: int) -> dict[str, str | bool | float]:
    """What the model was trained on: the letter, up to three neighbours on each side, and the ends of the word."""
    features: dict[str, str | bool | float] = {"bias": 1.0, "grapheme": _encoded(letters[index])}
    for distance in range(1, _CONTEXT_LETTERS + 1):
        if index >= distance:
            features[f"grapheme-{distance}"] = _encoded(letters[index - distance])
        if index + distance < len(letters):
            features[f"grapheme+{distance}"] = _encoded(letters[index + distance])
    if index == 0:
        features["begin"] = True
    if index == len(letters) - 1:
        features["end"] = True
    return features


def _encoded(letter: str) -> str:
    return base64.b64encode(letter.encode()).decode()


def _to_kokoro(sound: str) -> str:
    stress = sound[0] if sound[0] in _STRESSES else ""
    plain = sound.removeprefix(stress)
    if plain == "ɚ" and stress:
        return f"{stress}ɜɹ"
    return stress + _KOKORO.get(plain, plain)
