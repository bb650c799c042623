"""Peer: faster-whisper behind the least HTTP server, one request at a time: `WhisperModel` or `BatchedInferencePipeline`."""

from __future__ import annotations

import argparse
import io
import threading
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, Form
from faster_whisper import BatchedInferencePipeline, WhisperModel


def application(model_path: str, *, batched: bool, batch_size: int) -> FastAPI:
    """Decodes and hears under one lock: neither pipeline is made for two threads at once."""
    model = WhisperModel(model_path, device="cpu", compute_type="int8", cpu_threads=0, local_files_only=True)
    pipeline: Any = BatchedInferencePipeline(model) if batched else model
    options: dict[str, Any] = {"batch_size": batch_size} if batched else {"vad_filter": True}
    lock = threading.Lock()
    app = FastAPI()

    @app.post("/v1/audio/transcriptions")
    def transcribe(
        file: Annotated[bytes, File()], language: Annotated[str, Form()], model: Annotated[str, Form()]
    ) -> dict[str, str]:
        with lock:
            segments, _info = pipeline.transcribe(io.BytesIO(file), language=language, beam_size=5, **options)
            return {"text": "".join(segment.text for segment in segments).strip()}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--batched", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    app = application(args.model, batched=args.batched, batch_size=args.batch_size)
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")
