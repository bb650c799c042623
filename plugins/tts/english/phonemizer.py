"""The default way from text to phonemes: normalisation, then dictionary."""

from __future__ import annotations

from sixfold.plugins.tts.english.g2p import EnglishG2P
from sixfold.plugins.tts.english.normalization import spell_out


class EnglishPhonemizer:
    """Reads American English aloud, as phonemes of Kokoro. Safe to call from several threads."""

    def __init__(self) -> None:
        self._g2p = EnglishG2P()

    def phonemes(self, text: str) -> str:
        """Phonemes of a sentence as it is written; "" if nothing in it can be spoken."""
        # Kokoro v1.0 was trained with a letter of its own for the flap, and without the glottal stop.
        return self._g2p.phonemes(spell_out(text)).replace("ɾ", "T").replace("ʔ", "t")
