"""Loads a VITS or MMS folder of transformers."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch.nn.utils import parametrize
from transformers import VitsModel as Network
from transformers import VitsTokenizer

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import SourceError
from sixfold.core.family import LoadContext
from sixfold.core.runtime.cuda_graphs import capture_cuda_graph
from sixfold.plugins.tts.options import TransformersSpeechOptions
from sixfold.plugins.tts.vits import MAX_PART_CHARACTERS, VitsModel
from sixfold.plugins.tts.voices import VoiceNames

_NETWORK: Any = Network  # both without types
_TOKENIZER: Any = VitsTokenizer


def load(context: LoadContext) -> VitsModel:
    """Runs in the worker process.

    Raises:
        SourceError: The folder is no VITS model, or its text needs a program that is not installed.
        ConfigError: An option names a voice that is not there.
    """
    options = context.options
    assert isinstance(options, TransformersSpeechOptions)
    torch.set_num_threads(context.num_threads)
    context.report(0.1, "reading weights")
    try:
        network: Any = _NETWORK.from_pretrained(context.path, local_files_only=True)
        tokenizer: Any = _TOKENIZER.from_pretrained(context.path, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(
            f"models.{context.model_name}: the folder is no VITS model of transformers: {error}"
        ) from error
    _check_text(tokenizer, context.model_name)
    network.eval().to(context.device)
    _fix_weights(network)
    num_speakers = int(network.config.num_speakers)
    names = [str(index) for index in range(num_speakers)] if num_speakers > 1 else ["default"]
    voices = VoiceNames(names, options, context.model_name)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    details: dict[str, str | int | float | bool] = {
        **voices.details(),
        "sample_rate_hz": int(network.config.sampling_rate),
        "max_input_characters": options.max_input_characters,
        "language": tokenizer.language or "",
        "blends_voices": False,
        "takes_speed": True,
    }
    return VitsModel(
        info=ModelInfo(
            max_model_len=MAX_PART_CHARACTERS,
            parameters=parameters,
            memory_bytes=sum(parameter.nbytes for parameter in network.parameters()),
            details=details,
        ),
        network=network,
        tokenizer=tokenizer,
        voices=voices,
        max_input_characters=options.max_input_characters,
        max_batch_sentences=options.max_batch_sentences,
        num_threads=context.num_threads,
        capture=capture_cuda_graph(network.device) if network.device.type == "cuda" else None,
    )


def _fix_weights(network: Any) -> None:
    """Computes the normed weights once: the stock layers do it at every call, by kernels of their own."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")


def _check_text(tokenizer: Any, model_name: str) -> None:
    """transformers only warns about a missing romanizer and then drops the text: better to refuse the model."""
    for needed, package, why in (
        (
            tokenizer.phonemize,
            "phonemizer",
            "reads phonemes made by phonemizer, which needs espeak-ng (both are under the GPL)",
        ),
        (tokenizer.is_uroman, "uroman", "reads romanised text"),
    ):
        if needed and importlib.util.find_spec(package) is None:
            raise SourceError(
                f"models.{model_name}: the model {why}. Install {package}, or take an MMS model of letters."
            )
