"""Loads Kokoro's ONNX form, its voices and its vocabulary."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ConfigError, SourceError
from sixfold.core.family import LoadContext
from sixfold.plugins.tts.english.phonemizer import EnglishPhonemizer
from sixfold.plugins.tts.espeak import EspeakPhonemizer
from sixfold.plugins.tts.kokoro import MAX_PHONEMES, RATE_HZ, KokoroModel
from sixfold.plugins.tts.lanes import Lanes
from sixfold.plugins.tts.options import KokoroOptions
from sixfold.plugins.tts.voices import VoiceNames

_STYLE_VALUES = 256
_TOKEN_INPUTS = ("tokens", "input_ids")


def load(context: LoadContext) -> KokoroModel:
    """The family's loader; runs in the worker process.

    Raises:
        SourceError: The folder lacks the network, the voices or the vocabulary, or they do not fit each other.
        ConfigError: An option names what is not there.
    """
    options = context.options
    assert isinstance(options, KokoroOptions)
    if context.device != "cpu":
        raise ConfigError(f"models.{context.model_name}.device: tts/kokoro runs on cpu, not on {context.device}.")
    context.report(0.1, "reading voices")
    styles = read_voices(context.path)
    voices = VoiceNames(tuple(styles), options, context.model_name)
    context.report(0.2, "loading the network")
    network_path = find_network(context.path)
    network = OnnxNetwork(network_path)
    context.report(0.8, "loading the dictionary")
    phonemizer = EspeakPhonemizer(options.espeak_voice) if options.g2p == "espeak-ng" else EnglishPhonemizer()
    num_lanes = options.num_lanes or context.num_threads
    details: dict[str, str | int | float | bool] = {
        **voices.details(),
        "sample_rate_hz": RATE_HZ,
        "max_input_characters": options.max_input_characters,
        "g2p": options.g2p,
        "num_lanes": num_lanes,
        "blends_voices": True,
        "takes_speed": True,
    }
    return KokoroModel(
        info=ModelInfo(max_model_len=MAX_PHONEMES, memory_bytes=network_path.stat().st_size, details=details),
        network=network,
        phonemizer=phonemizer,
        vocabulary=read_vocabulary(context.path),
        styles=styles,
        voices=voices,
        lanes=Lanes(num_lanes),
        max_input_characters=options.max_input_characters,
    )


class OnnxRun:
    """One call of the session; see `sixfold.plugins.tts.lanes.Run`."""

    def __init__(self, session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[np.generic]]) -> None:
        self._session = session
        self._feed = feed
        self._options = onnxruntime.RunOptions()

    def __call__(self) -> NDArray[np.float32]:
        """The samples, [n]."""
        (audio, *_rest) = self._session.run(None, dict(self._feed), self._options)
        return np.asarray(audio, dtype=np.float32).reshape(-1)

    def stop(self) -> None:
        """The session looks at this between two operations."""
        self._options.terminate = True


class OnnxNetwork:
    """Kokoro in onnxruntime, one thread a call: calls of several lanes share no thread, so none waits for another.

    Args:
        path: The network.

    Raises:
        SourceError: It is not Kokoro.
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own that have no common base
            raise SourceError(f"{path.name} cannot be loaded by onnxruntime: {error}. Pull the model again.") from error
        inputs = {item.name: item.type for item in self._session.get_inputs()}
        tokens = next((name for name in _TOKEN_INPUTS if name in inputs), None)
        if tokens is None or set(inputs) != {tokens, "style", "speed"}:
            raise SourceError(
                f"{path.name} is not Kokoro: its inputs are {sorted(inputs)}, not tokens, style and speed."
            )
        if "float" not in inputs["speed"]:
            raise SourceError(f"{path.name} takes only whole speeds. Use a later export of Kokoro.")
        self._tokens = tokens

    def run(self, ids: NDArray[np.int64], style: NDArray[np.float32], speed: float) -> OnnxRun:
        """See `sixfold.plugins.tts.kokoro.Network`."""
        feed: dict[str, NDArray[np.generic]] = {
            self._tokens: np.pad(ids, 1)[None],
            "style": np.asarray(style, dtype=np.float32)[None],
            "speed": np.array([speed], dtype=np.float32),
        }
        return OnnxRun(self._session, feed)


def find_network(path: Path) -> Path:
    """The one ``.onnx`` file of the folder.

    Raises:
        SourceError: None, or several.
    """
    found = sorted(path.glob("*.onnx"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise SourceError(f"tts/kokoro needs exactly one .onnx file in the model's folder; it holds {names}.")
    return found[0]


def read_vocabulary(path: Path) -> dict[str, int]:
    """Id of each phoneme, from ``vocab.json``, or from Kokoro's own ``config.json``.

    Raises:
        SourceError: Neither is there, or it is not a vocabulary.
    """
    for name in ("vocab.json", "config.json"):
        if (path / name).exists():
            data = json.loads((path / name).read_text(encoding="utf-8"))
            vocabulary = data.get("vocab", data)
            if vocabulary and all(type(value) is int and len(key) == 1 for key, value in vocabulary.items()):
                return dict(vocabulary)
    raise SourceError("tts/kokoro needs vocab.json (or Kokoro's config.json) with the id of each phoneme.")


def read_voices(path: Path) -> dict[str, NDArray[np.float32]]:
    """The voices of every ``.npz`` (and ``.bin`` of kokoro-onnx, which is one) in the folder, [510, 256] each.

    Raises:
        SourceError: No voice, or one of another shape.
    """
    voices: dict[str, NDArray[np.float32]] = {}
    for file in sorted((*path.glob("*.npz"), *path.glob("voices*.bin"))):
        try:
            with np.load(file, allow_pickle=False) as archive:
                for name in archive.files:
                    voices[name] = np.asarray(archive[name], dtype=np.float32).reshape(-1, _STYLE_VALUES)
        except (ValueError, zipfile.BadZipFile) as error:
            raise SourceError(f"{file.name} is not a set of voices: {error}. Pull the model again.") from error
    if not voices:
        raise SourceError("tts/kokoro needs a .npz file of voices in the model's folder.")
    for name, styles in voices.items():
        if len(styles) < MAX_PHONEMES:
            raise SourceError(f"The voice {name!r} has styles for {len(styles)} lengths; Kokoro needs {MAX_PHONEMES}.")
    return voices
