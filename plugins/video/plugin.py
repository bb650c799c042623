"""Entry point of the video plugin; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

from sixfold.core.family import Family, MetricKind, MetricSpec, ModelFiles
from sixfold.core.hookspecs import Api, hookimpl
from sixfold.core.runtime.quantization.methods import LINEAR_METHODS
from sixfold.plugins.video import memory_need
from sixfold.plugins.video.messages import VideoOutput, VideoRequest
from sixfold.plugins.video.options import VideoOptions
from sixfold.plugins.video.probes import PROBES

_PIPELINES = tuple(
    "Allegro AnimateDiff CogVideoX Cosmos EasyAnimate Helios Hunyuan HunyuanVideo Kandinsky5T2V Kandinsky5I2V LTX Latte "
    "Lucy Mochi MotifVideo SanaVideo SkyReels TextToVideo Wan".split()
)
"""Beginnings of the class names of diffusers' video pipelines."""


def detect(files: ModelFiles) -> int:
    """90 for a pipeline folder of diffusers whose class or denoiser is one for video, else 0."""
    index = files.json("model_index.json")
    name = str(index.get("_class_name", ""))
    if not name.endswith("Pipeline") or name.startswith(("HunyuanDiT", "HunyuanImage")):
        return 0
    if name.startswith(_PIPELINES) or "Video" in name:
        return 90
    parts = " ".join(map(str, index.values()))  # of each component its library and class
    return 70 if "Transformer3D" in parts or "UNet3D" in parts else 0


def _counter(name: str, text: str) -> MetricSpec:
    return MetricSpec(name=name, kind=MetricKind.COUNTER, help=text)


FAMILY = Family(
    name="video/diffusers",
    summary="Text-to-video and image-to-video pipelines of diffusers, unmodified, their denoising steps batched in flight.",
    operations=frozenset({"video"}),
    loader="sixfold.plugins.video.loader:load",
    input_type=VideoRequest,
    output_type=VideoOutput,
    options=VideoOptions,
    extra="video",
    requires=("torch", "diffusers", "transformers", "av", "PIL"),
    detect=detect,
    quantization=LINEAR_METHODS,
    memory=memory_need.need,
    parallel=memory_need.shape,
    rank_loader="sixfold.plugins.video.loader:load_rank",
    # 1e-5 of a pixel before the file's encoder; a pixel that rounds to the next of 255 levels becomes six of them in it.
    batch_tolerance=0.04,
    metrics=(
        _counter("videos_total", "Clips that were finished."),
        _counter("video_frames_total", "Frames of finished clips."),
        _counter("num_inference_steps_total", "Denoising steps of finished clips."),
        _counter("denoise_step_latency_seconds_total", "Seconds in forwards of the denoiser; over forwards, the mean."),
        _counter("denoiser_forwards_total", "Forwards of the denoiser, each for one or more requests."),
        _counter("denoiser_rows_total", "Rows of these forwards; over forwards, the mean batch."),
        _counter(
            "vae_decode_seconds_total",
            "Seconds from the last step of clips to their frames, beside the steps of others.",
        ),
        _counter("video_encode_seconds_total", "Seconds in which files were encoded, beside the steps of others."),
        _counter("video_row_cache_hits_total", "Steps that the row cache mostly skipped."),
        MetricSpec(
            name="video_row_cache_bytes", kind=MetricKind.GAUGE, help="Memory that row caches hold.", is_held=True
        ),
        MetricSpec(
            name="vae_waiting_requests", kind=MetricKind.GAUGE, help="Clips that wait to be decoded.", is_held=True
        ),
    ),
    # Latent positions of steps: about 20 clips of 480p, 81 frames and 50 steps with guidance.
    default_max_queue_units=260_000_000,
)


@hookimpl
def register_families(register: Callable[[Family], None]) -> None:
    """Offers the diffusers family."""
    register(FAMILY)


@hookimpl
def register_apis(register: Callable[[Api], None]) -> None:
    """Offers ``/v1/videos``."""
    register(
        Api(
            modality="video",
            factory="sixfold.plugins.video.api:VideoAPI",
            examples={
                "video": "curl $url/v1/videos -H 'content-type: application/json' "
                """-d '{"model": "$model", "prompt": "a red ball moving right"}'  # then GET $url/v1/videos/ID/content""",
            },
            probes=PROBES,
        )
    )
