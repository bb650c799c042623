"""Phonemes from the program espeak-ng, for operators who install it: it is GPL, so it is called and never linked."""

from __future__ import annotations

import re
import shutil
import subprocess

from sixfold.core.errors import ConfigError, StepFailed

_TIMEOUT_S = 10.0
_TO_KOKORO = (
    ("\u200d", ""), ("_", ""), ("tʃ", "ʧ"), ("dʒ", "ʤ"), ("eɪ", "A"), ("aɪ", "I"), ("aʊ", "W"), ("ɔɪ", "Y"), ("oʊ", "O"),
    ("əʊ", "O"), ("ɚ", "əɹ"), ("ɝ", "ɜɹ"), ("ɾ", "T"), ("r", "ɹ"), ("ɐ", "ə"), ("g", "ɡ"),
)  # fmt: skip
_PAUSES = re.compile(r"([;:,.!?—…]+)")


class EspeakPhonemizer:
    """Calls ``espeak-ng`` once for each stretch between two pauses. Safe to call from several threads.

    Args:
        voice: Its name of the language.

    Raises:
        ConfigError: The program is not installed, or does not know the language.
    """

    def __init__(self, voice: str) -> None:
        program = shutil.which("espeak-ng")
        if program is None:
            raise ConfigError(
                "options.g2p is espeak-ng, and there is no such program. Install it (it is under the GPL), or remove the option."
            )
        self._command = (program, "-q", "--ipa=3", "-v", voice, "--stdin")
        try:
            self._call("a")
        except StepFailed as error:
            raise ConfigError(
                f"options.espeak_voice: espeak-ng does not take {voice!r}. See: espeak-ng --voices"
            ) from error

    def phonemes(self, text: str) -> str:
        """Phonemes of a sentence, with its pauses; "" if nothing in it can be spoken."""
        parts = [part if _PAUSES.fullmatch(part) else self._call(part) for part in _PAUSES.split(text) if part.strip()]
        spoken = "".join(part if _PAUSES.fullmatch(part) else f" {part}" for part in parts).strip()
        return spoken if any(letter.isalpha() for letter in spoken) else ""

    def _call(self, text: str) -> str:
        try:
            done = subprocess.run(
                self._command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise StepFailed("espeak-ng failed on a sentence of this request.") from error
        ipa = " ".join(done.stdout.split())
        for theirs, ours in _TO_KOKORO:
            ipa = ipa.replace(theirs, ours)
        return ipa
