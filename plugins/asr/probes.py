"""What the conformance kit asks of speech recognition: to write down a recording that comes with the package."""

from __future__ import annotations

from pathlib import Path

from sixfold.core.probe import Fields, Probe

RECORDING = Path(__file__).with_name("probe.ogg")
"""Two sentences of our own speech model, 16 kHz, in Opus."""


def _body(model: str, _number: int) -> Fields:
    """The same recording for every number: requests that share steps must have the same text, too."""
    return {"model": model, "file": RECORDING.read_bytes()}


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
