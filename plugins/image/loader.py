"""Loads a diffusers folder and finds out what it can draw."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import diffusers
import torch

from sixfold.core.batching.model import ModelInfo
from sixfold.core.errors import ConfigError, InvalidRequest, SourceError
from sixfold.core.family import LoadContext
from sixfold.core.parallel.modules import RankModule
from sixfold.core.rendezvous.compiled import compile_blocks
from sixfold.core.rendezvous.fp8_advice import warn_of_slow_fp8
from sixfold.core.rendezvous.graphs import RowGraphs
from sixfold.core.rendezvous.row_cache import RowCache, transformer_blocks
from sixfold.core.rendezvous.shared_type import keep_type
from sixfold.core.rendezvous.splitting import left_out, split_plan
from sixfold.core.runtime.cuda_graphs import capture_cuda_graph
from sixfold.core.runtime.quantization.component import Component
from sixfold.core.runtime.quantization.methods import LINEAR_METHODS
from sixfold.core.runtime.quantization.modules import held_bytes, quantize_loaded
from sixfold.core.runtime.quantization.policy import QuantizationPolicy
from sixfold.plugins.image.adapters import load_adapters
from sixfold.plugins.image.drawing import Planner
from sixfold.plugins.image.linear_map import LinearMap, fit_linear_map
from sixfold.plugins.image.model import ImageModel
from sixfold.plugins.image.options import ImageOptions
from sixfold.plugins.image.roles import find_roles
from sixfold.plugins.image.rules import DENOISERS, QUANTIZATION_SKIP
from sixfold.plugins.image.sizes import SizeRules

_LOG = logging.getLogger(__name__)
_D: Any = diffusers

# Pictures with guidance have two rows. Up to four of them nothing is padded; from there on at most a third.
_GRAPH_ROWS = (1, 2, 3, 4, 6, 8, 12, 16)


def load(context: LoadContext) -> ImageModel:
    """The family's loader; runs in the worker process.

    Raises:
        SourceError: The folder is no pipeline that diffusers can load.
        ConfigError: An option does not fit the model.
    """
    torch.set_num_threads(context.num_threads)
    context.report(0.1, "reading weights")
    return build(read_pipeline(context), context)


def read_pipeline(context: LoadContext, *, only: Collection[str] | None = None) -> Any:
    """The stock pipeline of the folder, on the CPU.

    Args:
        context: Names the folder.
        only: Leaves all other networks out.

    Raises:
        SourceError: The folder is no pipeline that diffusers can load.
    """
    options = context.options
    assert isinstance(options, ImageOptions)
    try:
        return _D.DiffusionPipeline.from_pretrained(
            str(context.path),
            dtype=dtype_of(options, torch.device(context.device)),
            local_files_only=True,
            **left_out(context.path, only),
        )
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise SourceError(f"diffusers can't load the model: {error}") from error


def build(pipeline: Any, context: LoadContext) -> ImageModel:
    """A model of a loaded pipeline.

    Raises:
        ConfigError: An option does not fit the model.
    """
    options = cast(ImageOptions, context.options)
    device = torch.device(context.device)
    if options.lora and options.compile:
        raise ConfigError(
            "options.lora: compiled blocks keep the adapters they were compiled with. Remove lora or compile."
        )
    switches = load_adapters(pipeline, options.lora)
    pipeline.to(device)
    modules = modules_of(pipeline)
    for module in modules.values():
        module.eval().requires_grad_(False)
    denoisers = [module for name, module in modules.items() if name in DENOISERS]
    if not denoisers:
        raise SourceError(
            f"{type(pipeline).__name__} has no denoiser that Sixfold knows ({', '.join(sorted(DENOISERS))})."
        )
    parameters = sum(p.numel() for module in modules.values() for p in module.parameters())
    done = quantize_parts(modules, context.quantization, context)
    quantized: dict[str, str | int | float | bool] = {"quantization": done} if done else {}
    warn_of_slow_fp8(context, {name: part for name, part in modules.items() if name in DENOISERS}, options.compile)
    keep_type(pipeline, dtype_of(options, device))
    caches = _compile_or_cache(denoisers, options)
    if context.parallel is not None:
        check_parallel(options)
        context.parallel.share(rank_modules(modules))
        caches = {}
    linear_map = _linear_map(pipeline)
    planner = Planner(
        roles=find_roles(pipeline),
        sizes=size_rules(pipeline, denoisers[0], options),
        options=options,
        caches_blocks=bool(caches),
        previews_linearly=linear_map is not None,
    )
    held = sum(held_bytes(module) for module in modules.values())
    context.report(1.0, "loaded")
    return ImageModel(
        planner=planner,
        info=ModelInfo(parameters=parameters, memory_bytes=held, details=_details(pipeline, planner) | quantized),
        device=device,
        caches=caches,
        switches=switches,
        linear_map=linear_map,
        num_threads=context.num_threads,
        graphs=None if context.parallel is not None else _graphs(device, options),
        parallel=context.parallel,
    )


def load_rank(context: LoadContext) -> Mapping[str, RankModule]:
    """The denoisers alone, for the ranks that compute their share of steps.

    Raises:
        SourceError: The folder is no pipeline that diffusers can load.
        ConfigError: An option does not fit.
    """
    pipeline = read_pipeline(context, only=DENOISERS)
    check_parallel(cast(ImageOptions, context.options))
    modules = {name: module for name, module in modules_of(pipeline).items() if name in DENOISERS}
    for module in modules.values():
        module.to(torch.device(context.device)).eval().requires_grad_(False)
    quantize_parts(modules, context.quantization, context)
    return rank_modules(modules)


def rank_modules(modules: Mapping[str, torch.nn.Module]) -> dict[str, RankModule]:
    """The denoisers, with how their tokens are split."""
    return {
        name: RankModule(module=module, plan=split_plan(module))
        for name, module in modules.items()
        if name in DENOISERS
    }


def check_parallel(options: ImageOptions) -> None:
    """Refuses what ranks can't do.

    Raises:
        ConfigError: An option needs one process.
    """
    for name, given in (
        ("lora", bool(options.lora)),
        ("compile", options.compile),
        ("row_cache_threshold", options.row_cache_threshold is not None),
    ):
        if given:
            raise ConfigError(f"options.{name}: not over several ranks yet. Remove it, or 'parallel'.")


def _graphs(device: torch.device, options: ImageOptions) -> RowGraphs | None:
    rows = _GRAPH_ROWS if options.cuda_graph_rows is None else options.cuda_graph_rows
    if device.type != "cuda" or not rows:
        return None
    return RowGraphs(capture_cuda_graph(device), device, rows)


def _compile_or_cache(denoisers: Sequence[torch.nn.Module], options: ImageOptions) -> dict[int, RowCache]:
    """Row caches by the identity of their module; none of compiled modules, whose blocks can't be wrapped."""
    if options.compile:
        compile_blocks(denoisers)
        caches: dict[int, RowCache] = {}
    else:
        caches = {id(module): RowCache(blocks) for module in denoisers if (blocks := transformer_blocks(module))}
    if options.row_cache_threshold is not None and not caches:
        raise ConfigError("row_cache_threshold: this model's blocks can't be cached (or compile is on). Remove it.")
    return caches


def _linear_map(pipeline: Any) -> LinearMap | None:
    """None for pipelines without an autoencoder, or with one that works otherwise: these have no cheap previews."""
    try:
        return fit_linear_map(pipeline.vae, int(pipeline.vae_scale_factor))
    except Exception as error:  # the border between the core and a model's code; pictures are drawn all the same
        _LOG.warning("%s has no linear previews: %s", type(pipeline).__name__, error)
        return None


def _details(pipeline: Any, planner: Planner) -> dict[str, str | int | float | bool]:
    roles, sizes, options = planner.roles, planner.sizes, planner.options
    return {
        "pipeline": type(pipeline).__name__,
        "default_size": f"{sizes.default[0]}x{sizes.default[1]}",
        "size_multiple": sizes.multiple,
        "max_pixels": sizes.max_pixels,
        "max_n": options.max_n,
        "generates": roles.generate is not None,
        "edits": roles.edit is not None,
        "fills_masks": roles.inpaint is not None,
        "max_input_images": 0 if roles.edit is None else max(1, roles.edit.max_references),
        "lora": " ".join(options.lora),
    }


def modules_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The networks of a pipeline by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def quantize_parts(
    modules: Mapping[str, torch.nn.Module], policy: QuantizationPolicy | None, context: LoadContext
) -> str:
    """Quantizes in place and says what: denoisers follow a policy, other parts only where it names them.

    Raises:
        ConfigError: The policy does not fit.
    """
    place = f"models.{context.model_name}.quantization"
    options = cast(ImageOptions, context.options)
    if policy is not None and options.compile and context.device == "cpu":
        raise ConfigError(f"{place}: what is quantized on a CPU can't be compiled. Remove options.compile.")
    if policy is not None and options.lora:
        raise ConfigError(f"{place}: adapters on quantized layers are not served yet. Remove it or options.lora.")
    components = {
        name: Component(module=module, defaults=QUANTIZATION_SKIP, unless_named=name not in DENOISERS)
        for name, module in modules.items()
    }
    return quantize_loaded(components, policy, LINEAR_METHODS, place=place)


def dtype_of(options: ImageOptions, device: torch.device) -> torch.dtype:
    """The type of the weights."""
    if options.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[options.dtype]


def size_rules(pipeline: Any, denoiser: Any, options: ImageOptions) -> SizeRules:
    """What sizes the model draws, from its configs.

    Raises:
        ConfigError: The default size of the options is not one of them.
    """
    scale = int(getattr(pipeline, "vae_scale_factor", 8))
    config = denoiser.config
    patch = getattr(config, "patch_size", None) or (getattr(config, "all_patch_size", None) or (1,))[0]
    packed = hasattr(pipeline, "_unpack_latents") or hasattr(pipeline, "_unpack_latents_with_ids")
    multiple = scale * max(patch if isinstance(patch, int) else int(patch[-1]), 2 if packed else 1)
    sample = getattr(pipeline, "default_sample_size", None) or getattr(config, "sample_size", None) or 128
    side = max(multiple, int(sample if isinstance(sample, int) else sample[-1]) * scale // multiple * multiple)
    rules = SizeRules(default=(side, side), multiple=multiple, max_pixels=max(options.max_pixels, side * side))
    if options.size is None:
        return rules
    try:
        default = rules.parse(options.size)
    except InvalidRequest as error:
        raise ConfigError(f"options.size: {error}") from error
    return SizeRules(default=default, multiple=multiple, max_pixels=rules.max_pixels)
