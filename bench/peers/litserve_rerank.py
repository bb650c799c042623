"""Peer: sentence-transformers' CrossEncoder behind plain LitServe, with its own batching of 32 requests or 10 ms."""

from __future__ import annotations

import argparse
from typing import Any

import litserve as ls
import torch
from sentence_transformers import CrossEncoder


class RerankAPI(ls.LitAPI):
    """Takes a query with its documents a request; the pairs of one batch are scored in one call."""

    def __init__(self, model: str, dtype: str, **options: Any) -> None:
        super().__init__(**options)
        self._model_path = model
        self._dtype = getattr(torch, dtype)

    def setup(self, device: str) -> None:
        self._model = CrossEncoder(self._model_path, device=device, model_kwargs={"dtype": self._dtype})

    def decode_request(self, request) -> list[tuple[str, str]]:  # noqa: ANN001 - LitServe reads an annotation as a schema
        return [(request["query"], document) for document in request["documents"]]

    def batch(self, inputs: list[list[tuple[str, str]]]) -> list[list[tuple[str, str]]]:
        return inputs

    def predict(self, inputs: list[list[tuple[str, str]]]) -> list[list[float]]:
        scores = self._model.predict([pair for pairs in inputs for pair in pairs], batch_size=32).tolist()
        ends = [sum(len(pairs) for pairs in inputs[: index + 1]) for index in range(len(inputs))]
        return [scores[end - len(pairs) : end] for pairs, end in zip(inputs, ends, strict=True)]

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        ranked = sorted(enumerate(output), key=lambda item: -item[1])
        return {"results": [{"index": index, "relevance_score": score} for index, score in ranked]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    api = RerankAPI(
        args.model, args.dtype, max_batch_size=32, batch_timeout=0.01, api_path="/v1/rerank", enable_async=False
    )
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, log_level="warning")
