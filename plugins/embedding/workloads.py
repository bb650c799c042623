"""What ``sixfold bench`` asks of embedding models."""

from __future__ import annotations

from sixfold.core.benchmark.workload import Workload

EMBEDDINGS = Workload(
    name="embeddings",
    summary="Embeddings of one text each.",
    path="/v1/embeddings",
    framing="json",
    make_body=lambda model, sample: {"model": model, "input": sample.text},
)
