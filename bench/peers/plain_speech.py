"""The plain synthesiser: the same Kokoro, phonemes and voice, one whole text at a time behind a lock.

The answer is sent when all of it is done. Onnxruntime gets its defaults: all cores for the one sentence that is computed.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from sixfold.plugins.tts.english.phonemizer import EnglishPhonemizer
from sixfold.plugins.tts.kokoro_loader import find_network, read_vocabulary, read_voices
from sixfold.plugins.tts.sentences import split_sentences


class Body(BaseModel):
    model: str
    input: str
    voice: str
    response_format: str = "pcm"


def make_app(folder: Path) -> FastAPI:
    session = onnxruntime.InferenceSession(str(find_network(folder)), providers=["CPUExecutionProvider"])
    vocabulary, voices, phonemizer, lock = (
        read_vocabulary(folder),
        read_voices(folder),
        EnglishPhonemizer(),
        threading.Lock(),
    )
    app = FastAPI()

    def speak(text: str, voice: str) -> bytes:
        sounds = []
        for sentence in split_sentences(text):
            ids = [vocabulary[phoneme] for phoneme in phonemizer.phonemes(sentence)]
            feed = {
                "tokens": np.array([[0, *ids, 0]], dtype=np.int64),
                "style": voices[voice][len(ids) - 1][None],
                "speed": np.ones(1, dtype=np.float32),
            }
            (audio,) = session.run(None, feed)
            sounds.append((np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())
        return b"".join(sounds)

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/v1/audio/speech")
    def speech(body: Body) -> Response:
        with lock:
            return Response(speak(body.input, body.voice), media_type="audio/pcm")

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    uvicorn.run(make_app(args.model), host="127.0.0.1", port=args.port, log_level="warning")
