"""Turns what a process of a replica was told into a loaded model: used by its worker, and by its further ranks."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sixfold.core.batching.engine_adapter import EngineAdapter
from sixfold.core.batching.model import EngineModel, StepModel
from sixfold.core.errors import UsageError
from sixfold.core.family import Family, LoadContext
from sixfold.core.runtime import wire
from sixfold.core.runtime.devices import resolve_device
from sixfold.core.runtime.quantization.policy import QuantizationPolicy

if TYPE_CHECKING:
    from sixfold.core.parallel.leader import Leader


def load_model(
    family: Family, load: wire.Load, report: Callable[[float, str], None], *, parallel: Leader | None = None
) -> StepModel[Any, Any, Any]:
    """Imports the family's loader and loads; an EngineModel comes back behind its adapter."""
    model: Any = imported(family.loader)(
        dataclasses.replace(load_context(family, load), report=report, parallel=parallel)
    )
    if issubclass(type(model), EngineModel):
        return EngineAdapter(model, max_engine_units=load.max_step_units)
    if not issubclass(type(model), StepModel):
        raise UsageError(f"{family.loader} returned {type(model).__name__}, not a StepModel or EngineModel.")
    stepped: StepModel[Any, Any, Any] = model
    return stepped


def split_threads(load: wire.Load) -> wire.Load:
    """The share of the host's cores that each rank has where ranks compute on the host."""
    assert load.ranks is not None
    if resolve_device(load.device) != "cpu":
        return load
    return msgspec.structs.replace(load, num_threads=max(1, load.num_threads // load.ranks.degrees.num_ranks))


def imported(place: str) -> Any:
    """What ``package.module:name`` names."""
    module_name, _, name = place.partition(":")
    return getattr(importlib.import_module(module_name), name)


def load_context(family: Family, load: wire.Load) -> LoadContext:
    """What a loader gets, but for what its process adds."""
    return LoadContext(
        model_name=load.model_name,
        path=Path(load.path),
        device=resolve_device(load.device),
        num_threads=load.num_threads,
        options=family.options.model_validate(load.options),
        quantization=None if load.quantization is None else QuantizationPolicy.model_validate(load.quantization),
    )
