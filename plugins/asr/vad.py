"""Voice activity: the probability of speech for every 32 ms, by the Silero network that faster-whisper ships."""

from __future__ import annotations

import threading
from importlib.resources import files
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sixfold.plugins.asr.schema import SpeechProbabilities, VadInput, VadState

FRAME_SAMPLES = 512
"""Samples of one probability, 32 ms at 16 kHz."""

_CONTEXT_SAMPLES = 64
_HIDDEN = 128
_ASSET = "silero_vad_v6.onnx"
_BATCH_FRAMES = 10_000


class VoiceDetector:
    """The network. Thread-safe: it keeps no state between calls, streams carry their own."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4
        path = files("faster_whisper.assets") / _ASSET
        self._session: Any = onnxruntime.InferenceSession(
            path.read_bytes(), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def probabilities(
        self, samples: NDArray[np.int16], state: VadState
    ) -> tuple[NDArray[np.float32], VadState]:
        """The probabilities of a chunk of a stream, and the stream's state after it.

        Args:
            samples: [frames * 512].
            state: After the chunk before.

        Returns:
            ([frames], state)
        """
        frames = (samples.astype(np.float32) / 32768.0).reshape(-1, FRAME_SAMPLES)
        if not len(frames):
            return np.zeros(0, dtype=np.float32), state
        hidden = _floats(state.hidden, (2, 1, 1, _HIDDEN))
        first = _floats(state.context, (1, _CONTEXT_SAMPLES))
        # Each frame is heard behind the end of the one before.
        context = np.concatenate([first, frames[:-1, -_CONTEXT_SAMPLES:]])
        rows = np.concatenate([context, frames], axis=1)
        found: list[NDArray[np.float32]] = []
        h, c = hidden[0], hidden[1]
        for start in range(0, len(rows), _BATCH_FRAMES):
            output, h, c = self._session.run(None, {"input": rows[start : start + _BATCH_FRAMES], "h": h, "c": c})
            found.append(np.asarray(output, dtype=np.float32).reshape(-1))
        after = VadState(hidden=np.stack([h, c]).tobytes(), context=frames[-1, -_CONTEXT_SAMPLES:].tobytes())
        return np.concatenate(found), after

    def answer(self, wanted: VadInput) -> SpeechProbabilities:
        """The result of a live stream's chunk."""
        samples = np.frombuffer(wanted.pcm, dtype="<i2")
        values, state = self.probabilities(samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES], wanted.state)
        return SpeechProbabilities(values=tuple(map(float, values)), state=state)


class LazyDetector:
    """Loads the network on first use, once for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._detector: VoiceDetector | None = None

    def get(self) -> VoiceDetector:
        """The network."""
        with self._lock:
            if self._detector is None:
                self._detector = VoiceDetector()
            return self._detector


def _floats(data: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if not data:
        return np.zeros(shape, dtype=np.float32)
    return np.frombuffer(data, dtype=np.float32).reshape(shape)
