"""Entry point of the speech synthesis plugin; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

from sixfold.core.benchmark.workload import Workload
from sixfold.core.family import Family, MetricKind, MetricSpec, ModelFiles
from sixfold.core.hookspecs import Api, hookimpl
from sixfold.plugins.tts import memory_need
from sixfold.plugins.tts.metrics import HISTOGRAMS
from sixfold.plugins.tts.options import KokoroOptions, TransformersSpeechOptions
from sixfold.plugins.tts.probes import PROBES
from sixfold.plugins.tts.schema import SpeechInput, SpeechOutput
from sixfold.plugins.tts.workloads import SPEECH

_METRICS = (
    *HISTOGRAMS,
    MetricSpec(name="tts_sentences_total", kind=MetricKind.COUNTER, help="Sentences that were synthesised."),
    MetricSpec(
        name="tts_input_tokens_total", kind=MetricKind.COUNTER, help="Phonemes or letters that were synthesised."
    ),
    MetricSpec(name="tts_audio_seconds_total", kind=MetricKind.COUNTER, help="Seconds of sound that were made."),
)


def detect_kokoro(files: ModelFiles) -> int:
    """100 for a folder with one ONNX file, voices and a vocabulary that has Kokoro's own letters, else 0."""
    config = files.json("vocab.json") or files.json("config.json")
    vocabulary = config.get("vocab", config)
    is_folder = files.path.is_dir()
    has_parts = is_folder and any(files.path.glob("*.onnx")) and any(files.path.glob("*.npz"))
    return 100 if has_parts and isinstance(vocabulary, dict) and {"ᵊ", "ᵻ", "A", "O"} <= vocabulary.keys() else 0


def detect_transformers(files: ModelFiles) -> int:
    """100 for VITS and MMS, and for SpeechT5 that speaks (others of its kind listen), else 0."""
    config = files.json("config.json")
    kind = config.get("model_type")
    speaks = kind == "vits" or (kind == "speecht5" and "SpeechT5ForTextToSpeech" in (config.get("architectures") or ()))
    return 100 if speaks else 0


KOKORO = Family(
    name="tts/kokoro",
    summary="Kokoro-82M in onnxruntime: English speech on a processor, sentence by sentence.",
    operations=frozenset({"speech"}),
    loader="sixfold.plugins.tts.kokoro_loader:load",
    input_type=SpeechInput,
    output_type=SpeechOutput,
    options=KokoroOptions,
    extra="tts",
    requires=("onnxruntime", "av", "misaki", "gruut_lang_en", "pycrfsuite", "num2words"),
    detect=detect_kokoro,
    memory=memory_need.kokoro_need,
    metrics=_METRICS,
    # Some ten minutes of work of one core: a letter is a fifteenth of a second of sound.
    default_max_queue_units=20_000,
)

TRANSFORMERS = Family(
    name="tts/transformers",
    summary="VITS, MMS and SpeechT5 of transformers, sentences of many requests in one batch.",
    operations=frozenset({"speech"}),
    loader="sixfold.plugins.tts.transformers_loader:load",
    input_type=SpeechInput,
    output_type=SpeechOutput,
    options=TransformersSpeechOptions,
    extra="tts",
    requires=("torch", "transformers", "av"),
    detect=detect_transformers,
    memory=memory_need.vits_need,
    batch_tolerance=2e-4,  # of full scale, 16-bit rounding included
    metrics=_METRICS,
    default_max_queue_units=100_000,
)


@hookimpl
def register_families(register: Callable[[Family], None]) -> None:
    """Offers Kokoro and the models of transformers."""
    register(KOKORO)
    register(TRANSFORMERS)


@hookimpl
def register_apis(register: Callable[[Api], None]) -> None:
    """Offers ``/v1/audio/speech`` and its lists of voices and models."""
    register(
        Api(
            modality="tts",
            factory="sixfold.plugins.tts.api:SpeechAPI",
            examples={
                "speech": "curl $url/v1/audio/speech -H 'content-type: application/json' "
                """-d '{"model": "$model", "input": "Good morning."}' -o speech.mp3""",
            },
            probes=PROBES,
        )
    )


@hookimpl
def register_workloads(register: Callable[[Workload], None]) -> None:
    """Offers speech to ``sixfold bench``."""
    register(SPEECH)
