"""What the conformance kit asks of speech recognition: to write down a recording that comes with the package."""

from __future__ import annotations

import io
import wave
from pathlib import Path

from sixfold.core.probe import Fields, Probe

RECORDING = Path(__file__).with_name("probe.ogg")
"""Two sentences of our own speech model, 16 kHz, in Opus."""

_CUT = 8


def _body(model: str, number: int) -> Fields:
    """The beginning of the recording, shorter for each number: rows that change places in a step change their texts."""
    import numpy as np

    from sixfold.plugins.asr.audio import decode_file
    from sixfold.plugins.asr.schema import SAMPLE_RATE_HZ

    samples = np.concatenate(list(decode_file(RECORDING.read_bytes(), max_duration_s=60)))
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(samples.itemsize)
        sound.setframerate(SAMPLE_RATE_HZ)
        sound.writeframes(samples[: len(samples) * _CUT // (_CUT + number)].tobytes())
    return {"model": model, "file": file.getvalue()}


PROBES = (
    Probe(
        operation="transcribe",
        path="/v1/audio/transcriptions",
        make_body=_body,
        content=lambda answer: answer["text"],
        is_form=True,
        stream={"stream": True},
        stream_end="transcript.text.done",
    ),
)
