"""Loads a SpeechT5 folder of transformers, its vocoder and its voices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import SpeechT5ForTextToSpeech, SpeechT5HifiGan, SpeechT5Tokenizer

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ConfigError, SourceError
from sixfold.core.family import LoadContext
from sixfold.core.runtime.cuda_graphs import capture_cuda_graph
from sixfold.plugins.tts.options import TransformersSpeechOptions
from sixfold.plugins.tts.speecht5 import SpeechT5Model, max_part_tokens
from sixfold.plugins.tts.voices import VoiceNames

_NETWORK: Any = SpeechT5ForTextToSpeech  # all without types
_VOCODER: Any = SpeechT5HifiGan
_TOKENIZER: Any = SpeechT5Tokenizer


def load(context: LoadContext) -> SpeechT5Model:
    """Runs in the worker process.

    Raises:
        SourceError: The folders are no SpeechT5 and vocoder of transformers.
        ConfigError: The vocoder or the voices are missing, or do not fit.
    """
    options = context.options
    assert isinstance(options, TransformersSpeechOptions)
    torch.set_num_threads(context.num_threads)
    context.report(0.1, "reading weights")
    vocoder_path = options.vocoder.local_path if options.vocoder is not None else context.path / "vocoder"
    if not vocoder_path.is_dir():
        raise ConfigError(
            f"models.{context.model_name}.options.vocoder: SpeechT5 makes spectrograms; name the source of the vocoder "
            "that turns them into sound, such as hf:microsoft/speecht5_hifigan."
        )
    try:
        network: Any = _NETWORK.from_pretrained(context.path, local_files_only=True)
        tokenizer: Any = _TOKENIZER.from_pretrained(context.path, local_files_only=True)
        vocoder: Any = _VOCODER.from_pretrained(vocoder_path, local_files_only=True)
    except ImportError as error:
        raise SourceError(f'models.{context.model_name}: {error}. Install it: pip install "sixfold[tts]".') from error
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(f"models.{context.model_name}: the folder is no SpeechT5 of transformers: {error}") from error
    for part in (network, vocoder):
        part.eval().to(context.device)
    speakers = read_speakers(context, options, int(network.config.speaker_embedding_dim))
    voices = VoiceNames(tuple(speakers), options, context.model_name)
    weights = [*network.parameters(), *vocoder.parameters()]
    details: dict[str, str | int | float | bool] = {
        **voices.details(),
        "sample_rate_hz": int(vocoder.config.sampling_rate),
        "max_input_characters": options.max_input_characters,
        "blends_voices": True,
        "takes_speed": False,
    }
    return SpeechT5Model(
        info=ModelInfo(
            max_model_len=max_part_tokens(network.config),
            parameters=sum(weight.numel() for weight in weights),
            memory_bytes=sum(weight.nbytes for weight in weights),
            details=details,
        ),
        network=network,
        vocoder=vocoder,
        tokenizer=tokenizer,
        speakers={name: _tensor(speaker, network) for name, speaker in speakers.items()},
        voices=voices,
        max_input_characters=options.max_input_characters,
        num_threads=context.num_threads,
        capture=capture_cuda_graph(network.device) if network.device.type == "cuda" else None,
    )


def read_speakers(
    context: LoadContext, options: TransformersSpeechOptions, num_values: int
) -> Mapping[str, NDArray[np.float32]]:
    """The voices: every array of the folder's ``.npz`` files, and what the options name.

    Raises:
        ConfigError: None at all, or one of another shape.
    """
    where = f"models.{context.model_name}.options.speakers"
    found: dict[str, Any] = {}
    for file in sorted(context.path.glob("*.npz")):
        with np.load(file, allow_pickle=False) as archive:
            found |= {name: archive[name] for name in archive.files}
    found |= {name: _read_array(f"{where}.{name}", source.local_path) for name, source in options.speakers.items()}
    if not found:
        raise ConfigError(
            f"{where}: SpeechT5 needs a voice: name sources of .npy files with {num_values} numbers each (x-vectors of a "
            "speaker, as speechbrain/spkrec-xvect-voxceleb makes them)."
        )
    for name, values in found.items():
        if values.size != num_values or not np.isfinite(values).all():
            raise ConfigError(
                f"{where}: the voice {name!r} must be {num_values} finite numbers; its shape is {values.shape}."
            )
    return {name: np.asarray(values, dtype=np.float32).reshape(-1) for name, values in found.items()}


def _read_array(where: str, path: Path) -> Any:
    files = [path] if path.is_file() else sorted(path.glob("*.npy"))
    if len(files) != 1:
        raise ConfigError(f"{where}: its source must be one .npy file; it holds {len(files)}.")
    try:
        return np.load(files[0], allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {files[0].name} is no array of NumPy: {error}") from error


def _tensor(speaker: NDArray[np.float32], network: Any) -> Tensor:
    return torch.as_tensor(speaker, device=network.device, dtype=network.dtype)
