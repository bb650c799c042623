"""Loads models of ``asr/transformers`` in the worker process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCTC, AutoProcessor, WhisperForConditionalGeneration

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ConfigError, SourceError
from sixfold.core.family import LoadContext
from sixfold.core.parallel.modules import RankModule
from sixfold.core.runtime.cuda_graphs import Capture, capture_cuda_graph
from sixfold.core.runtime.quantization.component import Component
from sixfold.core.runtime.quantization.methods import LINEAR_METHODS
from sixfold.core.runtime.quantization.modules import quantize_loaded
from sixfold.core.runtime.quantization.policy import QuantizationPolicy, patterns
from sixfold.plugins.asr.ctc import CtcModel
from sixfold.plugins.asr.encoder_ranks import rank_modules
from sixfold.plugins.asr.loader import load_speakers
from sixfold.plugins.asr.options import TransformersOptions
from sixfold.plugins.asr.transformers_backend import TransformersBackend
from sixfold.plugins.asr.whisper import WhisperModel

_CTC: Any = AutoModelForCTC
_PROCESSOR: Any = AutoProcessor
_WHISPER: Any = WhisperForConditionalGeneration


def load(context: LoadContext) -> WhisperModel | CtcModel:
    """The family's loader.

    Raises:
        SourceError: The folder holds neither Whisper nor a CTC model.
    """
    options = context.options
    assert isinstance(options, TransformersOptions)
    torch.set_num_threads(context.num_threads)
    dtype = _dtype(options.dtype, context.device)
    context.report(0.1, "reading weights")
    config = json.loads((context.path / "config.json").read_text())
    is_whisper = config.get("model_type") == "whisper"
    if context.parallel is not None and not is_whisper:
        raise ConfigError(
            f"models.{context.model_name}.parallel: only Whisper's encoder is computed by several ranks. Remove 'parallel', or "
            "use 'replicas' for more throughput."
        )
    speakers = load_speakers(options)
    details: dict[str, str | int | float | bool] = {
        "dtype": str(dtype).removeprefix("torch."),
        "diarization": speakers is not None,
        "max_audio_s": options.max_audio_s,
    }
    try:
        if is_whisper:
            backend = TransformersBackend(
                context.path,
                device=context.device,
                dtype=dtype,
                beam_size=options.beam_size,
                best_of=options.best_of,
                prepare=lambda model: details.update(_quantize(whisper_components(model), context)),
                capture=_capture(context.device),
            )
            details["multilingual"] = backend.is_multilingual
            if context.parallel is not None:
                context.report(0.9, "waiting for the other ranks")
                backend.divide(context.parallel, f"models.{context.model_name}.parallel")
            return WhisperModel(
                backend, info=ModelInfo(details=details), max_audio_s=options.max_audio_s, speakers=speakers
            )
        network: Any = _CTC.from_pretrained(context.path, dtype=dtype, local_files_only=True)
        processor = _PROCESSOR.from_pretrained(context.path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise SourceError(f"transformers can't load the model: {error}") from error
    num_parameters = sum(p.numel() for p in network.parameters())
    network = network.to(context.device).eval()
    details.update(_quantize(ctc_components(network), context))
    info = ModelInfo(parameters=num_parameters, details=details)
    return CtcModel(network, processor, info=info, max_audio_s=options.max_audio_s, speakers=speakers)


def load_rank(context: LoadContext) -> Mapping[str, RankModule]:
    """The family's `Family.rank_loader`: Whisper's encoder, quantized as the first rank's.

    Raises:
        SourceError: The folder holds no Whisper.
        ConfigError: The policy does not fit.
    """
    torch.set_num_threads(context.num_threads)
    return rank_modules(read_network(context, context.quantization).model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A model of transformers with what prepares its inputs, for measurements.

    Attributes:
        model: In evaluation mode, on its device.
        processor: Features, and words of token ids.
        components: What a policy may name.
        is_whisper: Else a CTC model.
    """

    model: Any
    processor: Any
    components: dict[str, Component]
    is_whisper: bool


def read_network(context: LoadContext, policy: QuantizationPolicy | None) -> Network:
    """The stock model, quantized.

    Raises:
        SourceError: The folder holds neither Whisper nor a CTC model.
        ConfigError: The policy does not fit.
    """
    options = context.options
    assert isinstance(options, TransformersOptions)
    is_whisper = json.loads((context.path / "config.json").read_text()).get("model_type") == "whisper"
    library = _WHISPER if is_whisper else _CTC
    dtype = _dtype(options.dtype, context.device)
    try:
        model: Any = library.from_pretrained(context.path, dtype=dtype, local_files_only=True)
        processor = _PROCESSOR.from_pretrained(context.path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise SourceError(f"transformers can't load the model: {error}") from error
    model = model.to(context.device).eval()
    components = whisper_components(model) if is_whisper else ctc_components(model)
    quantize_loaded(components, policy, LINEAR_METHODS, place=f"models.{context.model_name}.quantization")
    return Network(model=model, processor=processor, components=components, is_whisper=is_whisper)


def ctc_components(network: Any) -> dict[str, Component]:
    """The whole model; its output layer stays unless the policy has another list."""
    return {"model": Component(module=network, defaults=patterns("output"))}


def whisper_components(model: Any) -> dict[str, Component]:
    """The parts of Whisper that a policy may name. Its output layer is the token table, and stays."""
    return {
        "encoder": Component(module=model.model.encoder),
        "decoder": Component(module=model.model.decoder),
    }


def _quantize(components: dict[str, Component], context: LoadContext) -> dict[str, str]:
    place = f"models.{context.model_name}.quantization"
    done = quantize_loaded(components, context.quantization, LINEAR_METHODS, place=place)
    return {"quantization": done} if done else {}


def _capture(device: str) -> Capture | None:
    place = torch.device(device)
    return capture_cuda_graph(place) if place.type == "cuda" else None


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        name = "float32" if device == "cpu" else "float16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype
