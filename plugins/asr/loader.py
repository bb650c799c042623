"""Loads models of ``asr/faster-whisper`` in the worker process."""

from __future__ import annotations

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import SourceError
from sixfold.core.family import LoadContext
from sixfold.plugins.asr.ct2_backend import CTranslate2Backend
from sixfold.plugins.asr.options import AsrOptions, FasterWhisperOptions
from sixfold.plugins.asr.speakers import SpeakerModel
from sixfold.plugins.asr.whisper import WhisperModel


def load_speakers(options: AsrOptions) -> SpeakerModel | None:
    """The speaker network that the options name."""
    if options.diarization is None:
        return None
    return SpeakerModel(options.diarization.source.local_path, max_distance=options.diarization.max_distance)


def load(context: LoadContext) -> WhisperModel:
    """The family's loader.

    Raises:
        SourceError: The folder is no Whisper of CTranslate2.
    """
    options = context.options
    assert isinstance(options, FasterWhisperOptions)
    if not (context.path / "tokenizer.json").exists():
        raise SourceError(
            "The model's folder has no tokenizer.json. Convert the model with --copy_files tokenizer.json."
        )
    context.report(0.1, "reading weights")
    compute_type = options.compute_type
    if compute_type == "auto":
        compute_type = "int8" if context.device == "cpu" else "float16"
    try:
        backend = CTranslate2Backend(
            context.path,
            device=context.device,
            compute_type=compute_type,
            num_threads=context.num_threads,
            beam_size=options.beam_size,
            best_of=options.best_of,
        )
    except (RuntimeError, ValueError) as error:
        raise SourceError(f"CTranslate2 can't load the model: {error}") from error
    context.report(0.8, "reading the speaker network")
    speakers = load_speakers(options)
    details: dict[str, str | int | float | bool] = {
        "compute_type": backend.compute_type,
        "diarization": speakers is not None,
        "multilingual": backend.is_multilingual,
        "max_audio_s": options.max_audio_s,
    }
    return WhisperModel(
        backend,
        info=ModelInfo(memory_bytes=(context.path / "model.bin").stat().st_size, details=details),
        max_audio_s=options.max_audio_s,
        speakers=speakers,
    )
