"""What the conformance kit asks of image models."""

from __future__ import annotations

import base64
import io
from typing import Any

from sixfold.core.probe import Fields, Probe


def _body(model: str, number: int) -> Fields:
    return {"model": model, "prompt": f"{number + 1} red circles", "seed": number, "num_inference_steps": 4}


def _pixels(answer: Any) -> object:
    """From 0 to 1."""
    import numpy as np
    from PIL import Image

    files = [io.BytesIO(base64.b64decode(row["b64_json"])) for row in answer["data"]]
    return [np.asarray(Image.open(file)) / 255 for file in files]


PROBES = (
    Probe(
        operation="generate",
        path="/v1/images/generations",
        make_body=_body,
        content=_pixels,
        stream={"stream": True, "partial_images": 1},
        stream_end="image_generation.completed",
    ),
)
