"""What ``sixfold bench`` asks of speech models."""

from __future__ import annotations

from sixfold.core.benchmark.workload import Workload

SPEECH = Workload(
    name="speech",
    summary="Spoken texts as raw samples, streamed.",
    path="/v1/audio/speech",
    framing="bytes",
    # Voices have other names at each server: --extra-body '{"voice": "..."}' chooses one where there is no "alloy".
    make_body=lambda model, sample: {"model": model, "input": sample.text, "voice": "alloy", "response_format": "pcm"},
)
