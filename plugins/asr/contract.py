"""What a family of speech recognition takes and gives, for families that other packages bring: public, as `sixfold.core` is.

``transcribe`` and ``translate`` get a `TranscribeInput` and end with a `Transcript`; where its ``streams`` is set, a
`WindowDone` comes for each window. A live session sends `VadInput` first, which a model without a detector of speech
refuses. What a model can't honour it must refuse: `plain_sound` does that for models that only write down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sixfold.core.errors import InvalidRequest
from sixfold.core.refusal import refuse_others
from sixfold.plugins.asr.schema import (
    SAMPLE_RATE_HZ,
    AsrInput,
    AsrOutput,
    Segment,
    TranscribeInput,
    Transcript,
    VadInput,
    WindowDone,
    Word,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "SAMPLE_RATE_HZ",
    "AsrInput",
    "AsrOutput",
    "Segment",
    "TranscribeInput",
    "Transcript",
    "VadInput",
    "WindowDone",
    "Word",
    "plain_sound",
]

_PARAMS = {"wants_words": "timestamp_granularities", "wants_logprobs": "include", "diarizes": "response_format"}
_MAX_DURATION_S = 3600.0


def plain_sound(wanted: AsrInput, *, max_duration_s: float = _MAX_DURATION_S) -> NDArray[Any]:
    """The samples of a file, of a request to a model that writes it down and does nothing else. Decodes: for the pool.

    Args:
        wanted: The request.
        max_duration_s: Longer files are refused.

    Returns:
        [samples] of `SAMPLE_RATE_HZ`, float32 from -1 to 1.

    Raises:
        InvalidRequest: It asks for anything else, or the file can't be read.
    """
    import numpy as np  # not where the module of a plugin is loaded

    from sixfold.plugins.asr.audio import decode_file

    if not isinstance(wanted, TranscribeInput) or wanted.pcm_hz is not None:
        raise InvalidRequest("This model hears files, no live sessions.")
    refuse_others(wanted, {"audio", "vad", "streams"}, params=_PARAMS)
    blocks = list(decode_file(wanted.audio, max_duration_s=max_duration_s))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
