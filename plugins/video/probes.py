"""What the conformance kit asks of video models."""

from __future__ import annotations

import io
from typing import Any

from sixfold.core.probe import Fields, Probe


def _body(model: str, number: int) -> Fields:
    return {"model": model, "prompt": f"{number + 1} red circles", "seed": number, "num_inference_steps": 4}


def _frames(answer: Any) -> object:
    """From 0 to 1."""
    import av

    with av.open(io.BytesIO(answer), "r") as file:
        return [frame.to_ndarray(format="rgb24") / 255 for frame in file.decode(video=0)]


PROBES = (Probe(operation="video", path="/v1/videos", make_body=_body, content=_frames, is_job=True),)
