"""Sixfold's core: it knows no modality, no model and no cluster. The names in ``__all__`` are the public API.

Everything else may change without notice. Importing this package imports nothing heavy; the HTTP names load LitServe on
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sixfold.core.batching.model import (
    DeviceLost,
    EngineModel,
    Finish,
    Granted,
    ModelInfo,
    Outcome,
    StepModel,
    StepRange,
)
from sixfold.core.benchmark.workload import Sample, Workload
from sixfold.core.errors import (
    ConfigError,
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotReady,
    PluginConflict,
    QueueFull,
    RequestError,
    SixfoldError,
    SourceError,
    StepFailed,
    UsageError,
    WorkerDied,
)
from sixfold.core.family import Family, LoadContext, MetricKind, MetricSpec, ModelFiles
from sixfold.core.hookspecs import Api, Command, Source, hookimpl
from sixfold.core.memory.need import MemoryNeed, MemoryQuestion
from sixfold.core.messages import Cost, Failed, Finished, Increment, Priority, Request, Timing, Usage
from sixfold.core.plugins import Plugins, load_plugins
from sixfold.core.telemetry.names import TraceNames

if TYPE_CHECKING:
    from sixfold.core.runtime.local_replica import LocalReplica
    from sixfold.core.serving.api import (
        BackgroundRun,
        Call,
        Caller,
        Fetched,
        ModalityAPI,
        Route,
        Services,
        SocketCall,
        SocketRoute,
        StoredUpload,
        Upload,
    )

_LAZY = {
    "BackgroundRun": "sixfold.core.serving.api",
    "Call": "sixfold.core.serving.api",
    "Caller": "sixfold.core.serving.api",
    "Fetched": "sixfold.core.serving.api",
    "LocalReplica": "sixfold.core.runtime.local_replica",
    "ModalityAPI": "sixfold.core.serving.api",
    "Route": "sixfold.core.serving.api",
    "Services": "sixfold.core.serving.api",
    "SocketCall": "sixfold.core.serving.api",
    "SocketRoute": "sixfold.core.serving.api",
    "StoredUpload": "sixfold.core.serving.api",
    "Upload": "sixfold.core.serving.api",
}

__all__ = [
    "Api",
    "BackgroundRun",
    "Call",
    "Caller",
    "Command",
    "ConfigError",
    "ContextLengthExceeded",
    "Cost",
    "DeadlineExceeded",
    "DeviceLost",
    "EngineModel",
    "Failed",
    "Family",
    "Fetched",
    "Finish",
    "Finished",
    "Granted",
    "Increment",
    "InvalidRequest",
    "LoadContext",
    "LocalReplica",
    "MemoryNeed",
    "MemoryQuestion",
    "MetricKind",
    "MetricSpec",
    "ModalityAPI",
    "ModelFiles",
    "ModelInfo",
    "ModelNotFound",
    "NotReady",
    "Outcome",
    "PluginConflict",
    "Plugins",
    "Priority",
    "QueueFull",
    "Request",
    "RequestError",
    "Route",
    "Sample",
    "Services",
    "SixfoldError",
    "SocketCall",
    "SocketRoute",
    "Source",
    "SourceError",
    "StepFailed",
    "StepModel",
    "StepRange",
    "StoredUpload",
    "Timing",
    "TraceNames",
    "Upload",
    "Usage",
    "UsageError",
    "WorkerDied",
    "Workload",
    "hookimpl",
    "load_plugins",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
