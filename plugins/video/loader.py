"""Loads a diffusers pipeline folder as it is; nothing of it is replaced or patched."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ConfigError, SourceError
from sixfold.core.family import LoadContext, ModelFiles
from sixfold.core.parallel.modules import RankModule
from sixfold.core.rendezvous.calls import CallRules
from sixfold.core.rendezvous.compiled import compile_blocks
from sixfold.core.rendezvous.fp8_advice import warn_of_slow_fp8
from sixfold.core.rendezvous.row_cache import RowCache, transformer_blocks
from sixfold.core.rendezvous.scoped import LanePart, PipelinePlan
from sixfold.core.rendezvous.shared_type import keep_type
from sixfold.core.rendezvous.splitting import left_out, split_plan
from sixfold.core.runtime.quantization.component import Component
from sixfold.core.runtime.quantization.methods import LINEAR_METHODS
from sixfold.core.runtime.quantization.modules import held_bytes, quantize_loaded
from sixfold.core.runtime.quantization.policy import patterns
from sixfold.plugins.video.encoding import choose_format
from sixfold.plugins.video.inspection import DENOISERS, inspect_pipeline
from sixfold.plugins.video.model import VideoModel
from sixfold.plugins.video.options import VideoOptions

_D: Any = diffusers  # exports its classes lazily, which type checkers do not see
_LOG = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FLOAT32_VAES = frozenset({"AutoencoderKLWan"})

# Small, and an error in them reaches every token.
_QUANTIZATION_SKIP = patterns("embedder", "modulation", "output")

_RULES = {
    # Rotary tables have the size of the positions first, which may be the number of rows by chance.
    "CogVideoXTransformer3DModel": CallRules(shared=frozenset({"image_rotary_emb", "ofs"})),
    "ConsisIDTransformer3DModel": CallRules(shared=frozenset({"image_rotary_emb"})),
}


def load(context: LoadContext) -> VideoModel:
    """The family's loader; runs in the worker process.

    Raises:
        SourceError: The folder holds no pipeline that can be served.
        ConfigError: An option does not fit the pipeline.
    """
    options = context.options
    assert isinstance(options, VideoOptions)
    if options.compile:
        _check_compile(context, options)
    form = choose_format(options.video_codec)
    torch.set_num_threads(context.num_threads)
    device = torch.device(context.device)
    dtype = _dtype(options, device)
    context.report(0.1, "reading weights")
    pipeline = read_pipeline(context.path, dtype, keeps_vae=options.dtype == "auto").to(device)
    num_parameters = sum(p.numel() for part in _modules(pipeline).values() for p in part.parameters())
    quantized = _quantize(pipeline, context)
    denoisers = {name: part for name, part in _modules(pipeline).items() if name in DENOISERS}
    warn_of_slow_fp8(context, denoisers, options.compile)
    context.report(0.9, "looking at the pipeline")
    keep_type(pipeline, dtype)
    if options.compile:
        compile_blocks(denoisers.values())
    caches = {} if context.parallel is not None or options.compile else row_caches(pipeline)
    type_name = str(dtype).removeprefix("torch.")
    can = inspect_pipeline(pipeline, options, dtype=type_name, codec=form.codec, row_cache=bool(caches))
    if context.parallel is not None:
        context.parallel.share(rank_modules(pipeline))
    context.report(1.0, f"runs {can.pipeline}")
    return VideoModel(
        info=ModelInfo(
            parameters=num_parameters,
            memory_bytes=sum(held_bytes(part) for part in _modules(pipeline).values()),
            details={**can.details(), **({"quantization": quantized} if quantized else {})},
        ),
        pipeline=pipeline,
        plan=plan_of(pipeline),
        can=can,
        form=form,
        caches=caches,
        max_cache_bytes=options.max_cache_bytes,
        device=device,
        num_threads=context.num_threads,
        call_arguments=options.call_arguments,
        parallel=context.parallel,
    )


def _check_compile(context: LoadContext, options: VideoOptions) -> None:
    if options.row_cache_threshold is not None:
        raise ConfigError("options.compile: compiled blocks can't be cached. Remove it, or 'row_cache_threshold'.")
    if context.parallel is not None:
        raise ConfigError("options.compile: not over several ranks yet. Remove it, or 'parallel'.")
    if context.quantization is not None and context.device == "cpu":
        raise ConfigError(
            "options.compile: what is quantized on a CPU can't be compiled. Remove it, or 'quantization'."
        )


def load_rank(context: LoadContext) -> Mapping[str, RankModule]:
    """The denoisers alone, for the ranks that compute their share of steps.

    Raises:
        SourceError: The folder holds no pipeline that can be loaded.
    """
    options = context.options
    assert isinstance(options, VideoOptions)
    device = torch.device(context.device)
    pipeline = read_pipeline(context.path, _dtype(options, device), keeps_vae=False, only=DENOISERS)
    for module in _modules(pipeline).values():
        module.to(device).eval().requires_grad_(False)
    _quantize(pipeline, context)
    return rank_modules(pipeline)


def rank_modules(pipeline: Any) -> dict[str, RankModule]:
    """The denoisers, with how their tokens are split."""
    return {
        name: RankModule(module=module, plan=split_plan(module))
        for name, module in _modules(pipeline).items()
        if name in DENOISERS
    }


def _modules(pipeline: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def _quantize(pipeline: Any, context: LoadContext) -> str:
    """Denoisers follow an entry's policy, other parts only where it names them."""
    components = {
        name: Component(module=module, defaults=_QUANTIZATION_SKIP, unless_named=name not in DENOISERS)
        for name, module in _modules(pipeline).items()
    }
    place = f"models.{context.model_name}.quantization"
    return quantize_loaded(components, context.quantization, LINEAR_METHODS, place=place)


def read_pipeline(path: Path, dtype: torch.dtype, *, keeps_vae: bool, only: Collection[str] | None = None) -> Any:
    """The pipeline of a folder.

    Args:
        path: With a model_index.json.
        dtype: Of the weights.
        keeps_vae: Leaves a VAE in float32 that needs it.
        only: Leaves all other components out.

    Raises:
        SourceError: It can't be loaded.
    """
    index = ModelFiles(path).json("model_index.json")
    vae = index.get("vae") or [None, None]
    dtypes: Any = {"default": dtype, "vae": torch.float32} if keeps_vae and vae[1] in _FLOAT32_VAES else dtype
    try:
        return _D.DiffusionPipeline.from_pretrained(
            str(path), dtype=dtypes, local_files_only=True, **left_out(path, only)
        )
    except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
        raise SourceError(
            f"diffusers can't load the pipeline {index.get('_class_name')!r}: {error}. Pull the model again, or install "
            "what it needs."
        ) from error


def plan_of(pipeline: Any) -> PipelinePlan:
    """Denoisers share their forwards, the VAE has the lane, encoders run in the request's own thread."""
    modules = {name for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    denoisers = frozenset(modules & set(DENOISERS))
    # Both ways of a video VAE: many keep the state of a running pass in the module, so one pass at a time.
    vae = LanePart(methods={"decode": CallRules(), "encode": CallRules(merges=False)})
    return PipelinePlan(
        batched=denoisers,
        lanes={"vae": vae} if "vae" in modules else {},
        kept=frozenset({"safety_checker"}),  # Cosmos'
        rules=_RULES,
    )


def row_caches(pipeline: Any) -> dict[int, RowCache]:
    """Row caches of its denoisers, by the identity of the module; without those whose blocks can't be cached."""
    modules = [getattr(pipeline, name, None) for name in DENOISERS]
    return {
        id(module): RowCache(blocks)
        for module in modules
        if module is not None and (blocks := transformer_blocks(module))
    }


def _dtype(options: VideoOptions, device: torch.device) -> torch.dtype:
    if options.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return _DTYPES[options.dtype]
