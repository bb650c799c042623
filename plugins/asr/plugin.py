"""Entry point of the speech recognition plugin; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

from sixfold.core.family import Family, MetricKind, MetricSpec, ModelFiles
from sixfold.core.hookspecs import Api, hookimpl
from sixfold.core.runtime.quantization.methods import LINEAR_METHODS
from sixfold.plugins.asr import memory_need
from sixfold.plugins.asr.options import FasterWhisperOptions, TransformersOptions
from sixfold.plugins.asr.probes import PROBES
from sixfold.plugins.asr.schema import AsrInput, AsrOutput

_CTC_ARCHITECTURES = ("ForCTC",)
_COUNTER, _GAUGE = MetricKind.COUNTER, MetricKind.GAUGE

METRICS = (
    MetricSpec(
        name="audio_duration_seconds_total", kind=_COUNTER, help="Seconds of speech windows that were recognized."
    ),
    MetricSpec(name="audio_windows_total", kind=_COUNTER, help="Windows that were recognized."),
    MetricSpec(name="audio_compute_rtf", kind=_GAUGE, help="Seconds of computing for a second of audio, lately."),
)
WHISPER_METRICS = (
    *METRICS,
    MetricSpec(name="audio_encoded_windows", kind=_GAUGE, help="Encoded windows that are held now.", is_held=True),
    MetricSpec(
        name="audio_fallbacks_total", kind=_COUNTER, help="Attempts that failed Whisper's checks and were repeated."
    ),
    MetricSpec(name="generation_tokens_total", kind=_COUNTER, help="Tokens that were generated, timestamps included."),
)


def detect_ctranslate2(files: ModelFiles) -> int:
    """100 for a Whisper that CTranslate2's converter wrote."""
    config = files.json("config.json")
    return 100 if files.has("model.bin") and "alignment_heads" in config and "suppress_ids" in config else 0


def detect_transformers(files: ModelFiles) -> int:
    """80 for a Whisper or CTC model of transformers."""
    architectures = files.json("config.json").get("architectures") or [""]
    name = str(architectures[0])
    return 80 if name == "WhisperForConditionalGeneration" or name.endswith(_CTC_ARCHITECTURES) else 0


FASTER_WHISPER = Family(
    name="asr/faster-whisper",
    summary="Whisper through CTranslate2; windows of many requests share each batch.",
    operations=frozenset({"transcribe", "translate"}),
    loader="sixfold.plugins.asr.loader:load",
    input_type=AsrInput,
    output_type=AsrOutput,
    options=FasterWhisperOptions,
    extra="asr",
    requires=("faster_whisper", "ctranslate2", "av", "onnxruntime", "scipy"),
    detect=detect_ctranslate2,
    memory=memory_need.ctranslate2_need,
    metrics=WHISPER_METRICS,
    # An hour of audio: 120 windows of 3750 units.
    default_max_queue_units=1_000_000,
)

TRANSFORMERS = Family(
    name="asr/transformers",
    summary="Whisper and CTC models of transformers; windows of many requests share each batch.",
    operations=frozenset({"transcribe", "translate"}),
    loader="sixfold.plugins.asr.transformers_loader:load",
    rank_loader="sixfold.plugins.asr.transformers_loader:load_rank",
    parallel=memory_need.parallel_shape,
    input_type=AsrInput,
    output_type=AsrOutput,
    options=TransformersOptions,
    extra="asr",
    requires=("torch", "transformers", "faster_whisper", "av", "onnxruntime", "scipy"),
    detect=detect_transformers,
    memory=memory_need.transformers_need,
    metrics=WHISPER_METRICS,
    quantization=LINEAR_METHODS,
    quality="sixfold.plugins.asr.quality:SpeechQuality",
    default_max_queue_units=1_000_000,
)


@hookimpl
def register_families(register: Callable[[Family], None]) -> None:
    """Offers both families."""
    register(FASTER_WHISPER)
    register(TRANSFORMERS)


@hookimpl
def register_apis(register: Callable[[Api], None]) -> None:
    """Offers the audio routes and the live route."""
    register(
        Api(
            modality="asr",
            factory="sixfold.plugins.asr.api:AsrAPI",
            examples={"transcribe": "curl $url/v1/audio/transcriptions -F model=$model -F file=@speech.wav"},
            probes=PROBES,
            operations=frozenset({"translate"}),
        )
    )
