"""Empty modules in place of libraries that a measurement imports and does not use, where carrying them would be too much."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from unittest.mock import MagicMock


def stand_in(names: Sequence[str]) -> None:
    """Makes ``import`` of these modules work where they are not installed; what is asked of them is a mock.

    Args:
        names: With parents before children, such as "av" and "av.error".
    """
    missing = [name for name in names if "." not in name and importlib.util.find_spec(name) is None]
    for name in names:
        if name.partition(".")[0] in missing:
            sys.modules[name] = MagicMock(__path__=[], __spec__=None)


AUDIO = ("av", "av.audio", "av.audio.frame", "av.audio.resampler", "av.error")
"""FFmpeg, for files: sound that is measured comes as samples."""
