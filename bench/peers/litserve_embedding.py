"""Peer: sentence-transformers behind plain LitServe, with LitServe's own batching of 32 requests or 10 ms."""

from __future__ import annotations

import argparse
from typing import Any

import litserve as ls
import torch
from sentence_transformers import SentenceTransformer


class EmbeddingAPI(ls.LitAPI):
    """Takes a text or a list a request; the lists of one batch are encoded in one call."""

    def __init__(self, model: str, dtype: str, **options: Any) -> None:
        super().__init__(**options)
        self._model_path = model
        self._dtype = getattr(torch, dtype)

    def setup(self, device: str) -> None:
        self._model = SentenceTransformer(self._model_path, device=device, model_kwargs={"dtype": self._dtype})

    def decode_request(self, request) -> list[str]:  # noqa: ANN001 - LitServe reads an annotation as a schema
        texts = request["input"]
        return [texts] if isinstance(texts, str) else texts

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        return inputs

    def predict(self, inputs: list[list[str]]) -> list[list[list[float]]]:
        vectors = self._model.encode([text for texts in inputs for text in texts], batch_size=32).tolist()
        ends = [sum(len(texts) for texts in inputs[: index + 1]) for index in range(len(inputs))]
        return [vectors[end - len(texts) : end] for texts, end in zip(inputs, ends, strict=True)]

    def unbatch(self, output: list[list[list[float]]]) -> list[list[list[float]]]:
        return output

    def encode_response(self, output: list[list[float]]) -> dict[str, Any]:
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(output)]
        return {"object": "list", "data": data, "model": "embed"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    api = EmbeddingAPI(
        args.model, args.dtype, max_batch_size=32, batch_timeout=0.01, api_path="/v1/embeddings", enable_async=False
    )
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, log_level="warning")
