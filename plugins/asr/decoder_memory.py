"""How many windows Whisper's decoder hears at once, and what its caches take; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_BYTES = 6 << 30
"""Of all caches: eight windows of large-v3 in half precision with five beams each, sixteen without."""
_SHARE = 4
"""A card's memory over what they may take of it at most."""
_MAX_WINDOWS = 32


@dataclass(frozen=True, slots=True)
class DecoderSize:
    """Of one Whisper.

    Attributes:
        layers: Of the decoder.
        width: Of its hidden states.
        heard: Places of the encoder's answer.
        length: Longest prompt and text together, in tokens.
        itemsize: Bytes of a number.
        total_bytes: The device's memory.
    """

    layers: int
    width: int
    heard: int
    length: int
    itemsize: int
    total_bytes: int

    def window_bytes(self, beams: int) -> int:
        """Keys and values of what is heard, and of the texts of all beams."""
        return 2 * self.layers * self.width * (self.heard + beams * self.length) * self.itemsize

    def max_windows(self, beams: int) -> int:
        """A power of 2."""
        room = min(_MAX_BYTES, self.total_bytes // _SHARE)
        fitting = max(1, min(_MAX_WINDOWS, room // self.window_bytes(beams)))
        return 1 << (fitting.bit_length() - 1)

    def cache_bytes(self, beams: int) -> int:
        """Of as many windows as are heard at once."""
        return self.max_windows(beams) * self.window_bytes(beams)
