"""Sixfold's core: it knows no modality, no model and no cluster. The names in ``__all__`` are the public API.

Everything else may change without notice. Importing this package imports nothing: each name loads its module on first use.
The conformance kit counts on it, whose entry point is imported by every pytest of an environment that has Sixfold.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sixfold.core.batching.forward_model import ForwardModel
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
    from sixfold.core.hookspecs import Api, Command, Plugin, Progress, Source, hookimpl
    from sixfold.core.memory.need import MemoryNeed, MemoryQuestion
    from sixfold.core.messages import Cost, Failed, Finished, Increment, Priority, Request, Timing, Usage
    from sixfold.core.plugins import Plugins, load_plugins
    from sixfold.core.probe import Probe
    from sixfold.core.refusal import refuse_others
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
    from sixfold.core.sources.download import RemoteFile, fetch_file, file_lock
    from sixfold.core.telemetry.names import TraceNames

_MODULES = {
    "Api": "hookspecs",
    "BackgroundRun": "serving.api",
    "Call": "serving.api",
    "Caller": "serving.api",
    "Command": "hookspecs",
    "ConfigError": "errors",
    "ContextLengthExceeded": "errors",
    "Cost": "messages",
    "DeadlineExceeded": "errors",
    "DeviceLost": "batching.model",
    "EngineModel": "batching.model",
    "Failed": "messages",
    "Family": "family",
    "Fetched": "serving.api",
    "Finish": "batching.model",
    "Finished": "messages",
    "ForwardModel": "batching.forward_model",
    "Granted": "batching.model",
    "Increment": "messages",
    "InvalidRequest": "errors",
    "LoadContext": "family",
    "LocalReplica": "runtime.local_replica",
    "MemoryNeed": "memory.need",
    "MemoryQuestion": "memory.need",
    "MetricKind": "family",
    "MetricSpec": "family",
    "ModalityAPI": "serving.api",
    "ModelFiles": "family",
    "ModelInfo": "batching.model",
    "ModelNotFound": "errors",
    "NotReady": "errors",
    "Outcome": "batching.model",
    "Plugin": "hookspecs",
    "PluginConflict": "errors",
    "Plugins": "plugins",
    "Priority": "messages",
    "Probe": "probe",
    "Progress": "hookspecs",
    "QueueFull": "errors",
    "RemoteFile": "sources.download",
    "Request": "messages",
    "RequestError": "errors",
    "Route": "serving.api",
    "Sample": "benchmark.workload",
    "Services": "serving.api",
    "SixfoldError": "errors",
    "SocketCall": "serving.api",
    "SocketRoute": "serving.api",
    "Source": "hookspecs",
    "SourceError": "errors",
    "StepFailed": "errors",
    "StepModel": "batching.model",
    "StepRange": "batching.model",
    "StoredUpload": "serving.api",
    "Timing": "messages",
    "TraceNames": "telemetry.names",
    "Upload": "serving.api",
    "Usage": "messages",
    "UsageError": "errors",
    "WorkerDied": "errors",
    "Workload": "benchmark.workload",
    "file_lock": "sources.download",
    "fetch_file": "sources.download",
    "hookimpl": "hookspecs",
    "load_plugins": "plugins",
    "refuse_others": "refusal",
}
"""Where each public name is, below this package."""

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
    "ForwardModel",
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
    "Plugin",
    "PluginConflict",
    "Plugins",
    "Priority",
    "Probe",
    "Progress",
    "QueueFull",
    "RemoteFile",
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
    "fetch_file",
    "file_lock",
    "hookimpl",
    "load_plugins",
    "refuse_others",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
