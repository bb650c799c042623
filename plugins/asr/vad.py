"""Voice activity: the probability of speech for every 32 ms, by the Silero network that faster-whisper ships."""

from __future__ import annotations

import math
import threading
from importlib.resources import files
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sixfold.plugins.asr.schema import SAMPLE_RATE_HZ, SpeechProbabilities, VadInput, VadState
from sixfold.plugins.asr.untyped import onnxruntime, scipy_signal

FRAME_SAMPLES = 512
"""Samples of one probability, 32 ms at 16 kHz."""

_CONTEXT_SAMPLES = 64
_HIDDEN = 128
_ASSET = "silero_vad_v6.onnx"
_BATCH_FRAMES = 10_000
_TAIL_SAMPLES = 96  # a multiple of 3, longer than the filter of 24 to 16 kHz


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

    def probabilities(self, samples: NDArray[np.int16], state: VadState) -> tuple[NDArray[np.float32], VadState]:
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
        samples = np.frombuffer(wanted.pcm[: len(wanted.pcm) // 2 * 2], dtype="<i2")
        at_16k, tail = _resampled(samples, wanted.pcm_hz, wanted.state.tail)
        values, state = self.probabilities(at_16k[: len(at_16k) // FRAME_SAMPLES * FRAME_SAMPLES], wanted.state)
        state = msgspec.structs.replace(state, tail=tail)
        return SpeechProbabilities(values=tuple(map(float, values)), state=state)


def _resampled(samples: NDArray[np.int16], rate_hz: int, tail: bytes) -> tuple[NDArray[np.int16], bytes]:
    """A chunk at 16 kHz, filtered together with the end of the chunk before; and its own end."""
    if rate_hz == SAMPLE_RATE_HZ:
        return samples, b""
    before = np.frombuffer(tail, dtype="<i2") if tail else np.zeros(_TAIL_SAMPLES, dtype="<i2")
    divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    up, down = SAMPLE_RATE_HZ // divisor, rate_hz // divisor
    whole = np.concatenate([before, samples])
    filtered = scipy_signal.resample_poly(whole.astype(np.float32), up, down)[len(before) * up // down :]
    return np.clip(filtered, -32768, 32767).astype(np.int16), whole[-_TAIL_SAMPLES:].astype("<i2").tobytes()


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
