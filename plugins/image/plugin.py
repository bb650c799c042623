"""Entry point of the image plugin; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

from sixfold.core.family import Family, MetricKind, MetricSpec, ModelFiles
from sixfold.core.hookspecs import Api, hookimpl
from sixfold.core.runtime.quantization.methods import LINEAR_METHODS
from sixfold.plugins.image import memory_need
from sixfold.plugins.image.options import ImageOptions
from sixfold.plugins.image.probes import PROBES
from sixfold.plugins.image.schema import ImageInput, ImageOutput

# Parts of the class names of pipelines that make something else, or that take what no request can give.
_OTHERS = (
    "Video",
    "Audio",
    "Music",
    "Wan",
    "LTX",
    "Mochi",
    "Allegro",
    "CogVideo",
    "AnimateDiff",
    "ControlNet",
    "Upscale",
    "Prior",
)


def detect(files: ModelFiles) -> int:
    """90 for a folder with a diffusers pipeline of images, else 0."""
    name = files.json("model_index.json").get("_class_name")
    if not isinstance(name, str) or any(other in name for other in _OTHERS):
        return 0
    return 90


def _counter(name: str, text: str) -> MetricSpec:
    return MetricSpec(name=name, kind=MetricKind.COUNTER, help=text)


FAMILY = Family(
    name="image/diffusers",
    summary="Any text-to-image, image-to-image or inpainting pipeline of diffusers, batched step by step.",
    operations=frozenset({"generate", "edit", "vary"}),
    loader="sixfold.plugins.image.loader:load",
    input_type=ImageInput,
    output_type=ImageOutput,
    options=ImageOptions,
    extra="image",
    requires=("torch", "diffusers", "transformers", "PIL"),
    detect=detect,
    quantization=LINEAR_METHODS,
    quality="sixfold.plugins.image.quality:ImageQuality",
    memory=memory_need.need,
    parallel=memory_need.shape,
    rank_loader="sixfold.plugins.image.loader:load_rank",
    batch_tolerance=1.01 / 255,  # 1e-5 of a pixel in float32, which may round to the next of 255 levels
    metrics=(
        _counter("image_pictures_total", "Pictures that were drawn."),
        _counter("image_pixels_total", "Pixels that were drawn."),
        _counter("image_denoise_calls_total", "Calls of the denoiser by pipelines."),
        _counter("image_denoise_forwards_total", "Forwards of the denoiser; calls share them."),
        _counter("image_replayed_forwards_total", "Forwards of the denoiser that were recorded CUDA graphs."),
        _counter("image_decode_calls_total", "Pictures and previews that were decoded."),
        _counter("image_decode_forwards_total", "Forwards of the decoder; pictures share them."),
        _counter("image_encode_calls_total", "Input pictures and masks that were encoded."),
        _counter("image_row_cache_hits_total", "Steps that the row cache mostly skipped."),
        MetricSpec(
            name="image_row_cache_bytes", kind=MetricKind.GAUGE, help="Memory that row caches hold.", is_held=True
        ),
    ),
    # Latent positions times steps and rows: about 100 pictures of 1024x1024 in 30 steps.
    token_counts=("text_tokens", "image_tokens", "output_tokens"),
    default_max_queue_units=25_000_000,
)


@hookimpl
def register_families(register: Callable[[Family], None]) -> None:
    """Offers the diffusers family."""
    register(FAMILY)


@hookimpl
def register_apis(register: Callable[[Api], None]) -> None:
    """Offers ``/v1/images``."""
    register(
        Api(
            modality="image",
            factory="sixfold.plugins.image.api:ImageAPI",
            examples={
                "generate": "curl $url/v1/images/generations -H 'content-type: application/json' "
                """-d '{"model": "$model", "prompt": "a red circle above a blue square"}'""",
            },
            probes=PROBES,
            operations=frozenset({"edit", "vary"}),
        )
    )
