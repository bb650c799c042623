"""A family adapts one kind of model to the core; this file holds what a plugin declares about it, without loading it."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict

from sixfold.core.errors import SourceError
from sixfold.core.memory.need import MemoryNeed, MemoryQuestion
from sixfold.core.memory.weights import weights_bytes
from sixfold.core.parallel.planner import ParallelShape
from sixfold.core.runtime.quantization.policy import Method, QuantizationPolicy
from sixfold.core.telemetry.names import TraceNames

if TYPE_CHECKING:  # it imports torch, which the serving process does not have
    from sixfold.core.parallel.leader import Leader


class NoOptions(BaseModel):
    """The options of a family that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MetricKind(StrEnum):
    """How Prometheus shall read a value of `ReplicaModel.stats`."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One value that the family's models report in ``stats()``, published as ``sixfold:<name>{model_name=...}``.

    Attributes:
        name: Prometheus name without prefix; counters end in ``_total``, times in ``_seconds``, sizes in ``_bytes``.
        kind: A counter's reported value only ever grows while the replica lives. A histogram is reported as the values of
            a `sixfold.core.observations.Observations`.
        help: One sentence for people.
        buckets: Upper bounds of a histogram's buckets, rising, without the last one that takes all.
        is_held: Whether the gauge counts what requests hold, so that it is 0 while none runs; the conformance kit sees to it.
    """

    name: str
    kind: MetricKind
    help: str
    buckets: tuple[float, ...] = ()
    is_held: bool = False


class ModelFiles:
    """The files of a resolved model, read lazily; what `Family.detect` looks at.

    Args:
        path: The model's folder, or a single file such as a ``.gguf``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, name: str) -> bool:
        """Whether the folder holds this file or sub-folder (``"1_Pooling/config.json"``)."""
        return self.path.is_dir() and (self.path / name).exists()

    @functools.lru_cache(maxsize=64)  # noqa: B019 - lives as long as the few instances made at load time
    def json(self, name: str) -> dict[str, Any]:
        """The parsed JSON object of a file, or {} if there is no such file.

        Raises:
            SourceError: The file is not a JSON object.
        """
        if not self.has(name):
            return {}
        try:
            value: Any = json.loads((self.path / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise SourceError(f"{name} of the model is not valid JSON: {error}. Pull the model again.") from error
        if not isinstance(value, dict):
            raise SourceError(f"{name} of the model must hold a JSON object.")
        return cast("dict[str, Any]", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadContext:
    """What a family's loader gets, in the worker process.

    Attributes:
        model_name: The registry's name, for messages.
        path: The model's resolved, converted files.
        device: "cpu" or "cuda:N".
        num_threads: CPU threads that the replica may use for steps.
        options: The validated instance of the family's ``options`` class.
        quantization: What the entry asks for, of the methods that the family declares; None for nothing.
        parallel: The other ranks of the replica, if it has any: share with them what they compute along.
        report: Call with (fraction 0..1, what is being done) while loading.
    """

    model_name: str
    path: Path
    device: str
    num_threads: int
    options: BaseModel
    quantization: QuantizationPolicy | None = None
    parallel: Leader | None = None
    report: Callable[[float, str], None] = field(default=lambda _fraction, _what: None)


def need_of_files(question: MemoryQuestion) -> MemoryNeed:
    """What a model takes whose family does not say: its weights as they are stored."""
    return MemoryNeed(weights_bytes=weights_bytes(question.path, recursive=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """An adapter for a kind of model. Registered by a plugin through ``register_families``.

    Attributes:
        name: ``"modality/library"``, e.g. ``"llm/transformers"``; unique over all plugins.
        summary: One sentence for ``sixfold plugins``.
        operations: What clients can ask of its models (``"chat"``, ``"embed"``); API layers check it.
        loader: ``"package.module:function"`` imported in the worker only; takes LoadContext, returns a StepModel or
            EngineModel.
        input_type: The msgspec type of ``Request.input`` (a Struct, or a union of tagged Structs).
        output_type: The msgspec type of all increments and results (same rule).
        options: The pydantic class (``extra="forbid"``) of the registry entry's ``options``.
        extra: The pip extra that brings what it needs, for the message when something is missing; empty if its package does.
        requires: Import names that must be installed.
        detect: Says from the model's own files how sure it is to be the right family: 0 no, 100 certainly.
        metrics: What its models report.
        quantization: What its loader can do with an entry's ``quantization``.
        quality: ``"package.module:function"`` that ``sixfold quantize-report`` calls, imported then: takes LoadContext,
            returns a `QualityProbe`. Empty if the family measures nothing.
        memory: Says from a model's files and options what one replica of it will take. Called in a thread of the serving
            process and by ``sixfold plan``, so it imports nothing heavy. Rather too much than too little: what does not fit
            is not loaded, and what takes more than it said endangers the others.
        token_counts: Which of the counters of `Usage` are tokens, for the limits of keys; sums of others left out.
        default_max_queue_units: Work in units that may wait before new requests get 429.
        variants: Further names that a model of these options offers, each answering in its own way (an adapter); the HTTP
            face finds the model by them and tells which one was used.
        parallel: Says from a model's files what the planner of ranks must know; None if the family runs in one process only.
        rank_loader: ``"package.module:function"`` that the other ranks call in place of ``loader``: takes LoadContext, returns
            the modules (`RankModule` by name) that ``loader`` shares with them.
        trace_names: What its stages and operations are called in traces.
        batch_tolerance: How far the numbers of an answer may differ when others share its steps, as a share of the larger
            of 1 and the number itself; 0 for not at all. The conformance kit holds the family to it.
        adjusts: Whether a running model can take over new options (first the old ones are given, then the new) by
            `ReplicaModel.adjust`; otherwise it is loaded anew.
    """

    name: str
    summary: str
    operations: frozenset[str]
    loader: str
    input_type: Any
    output_type: Any
    options: type[BaseModel] = NoOptions
    extra: str = ""
    requires: tuple[str, ...] = ()
    detect: Callable[[ModelFiles], int] = field(default=lambda _files: 0)
    metrics: tuple[MetricSpec, ...] = ()
    quantization: frozenset[Method] = frozenset()
    quality: str = ""
    memory: Callable[[MemoryQuestion], MemoryNeed] = need_of_files
    parallel: Callable[[MemoryQuestion], ParallelShape] | None = None
    rank_loader: str = ""
    token_counts: tuple[str, ...] = ("prompt_tokens", "completion_tokens")
    default_max_queue_units: int = 1_000_000
    variants: Callable[[Any], tuple[str, ...]] = field(default=lambda _options: ())
    trace_names: TraceNames = field(default_factory=TraceNames)
    batch_tolerance: float = 0.0
    adjusts: Callable[[Any, Any], bool] = field(default=lambda _old, _new: False)

    @property
    def modality(self) -> str:
        """The part of the name before the slash."""
        return self.name.partition("/")[0]

    def missing(self) -> tuple[str, ...]:
        """The required modules that are not installed; looked up without importing them."""
        return tuple(name for name in self.requires if not _installed(name))


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is missing
        return False
