"""What the conformance kit asks of speech models."""

from __future__ import annotations

from typing import Any

from sixfold.core.probe import Fields, Probe

_FULL_SCALE = 32768.0


def _body(model: str, number: int) -> Fields:
    text = f"This is sentence {number}. It is followed by another."
    return {"model": model, "input": text, "response_format": "pcm", "seed": number}


def _samples(answer: Any) -> object:
    """As shares of full scale."""
    import numpy as np

    return np.frombuffer(answer, "<i2") / _FULL_SCALE


PROBES = (
    Probe(
        operation="speech",
        path="/v1/audio/speech",
        make_body=_body,
        content=_samples,
        stream={"stream_format": "sse"},
        stream_end="speech.audio.done",
    ),
)
