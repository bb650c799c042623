"""Reads the load of this server's models at one moment."""

from __future__ import annotations

from collections.abc import Sequence

from sixfold.core.autoscaling.load import CACHE_USE, INPUT_TOKENS, OUTPUT_TOKENS, ModelLoad, ServerLoad, StepWork
from sixfold.core.runtime.replica import ReplicaSnapshot
from sixfold.core.serving.directory import Directory, HostedModel
from sixfold.core.serving.metrics import ModelMetrics, ServingMetrics


def sample_load(directory: Directory, metrics: ServingMetrics, *, started_s: float, now_s: float) -> ServerLoad:
    """The load of all models, in the order of the configuration.

    Args:
        directory: Where the replicas are.
        metrics: Where requests are counted.
        started_s: When the server started.
        now_s: Now, by the same monotonic clock.
    """
    counted = dict(metrics.models())
    models = tuple(_model_load(model, counted.get(model.name), now_s) for model in directory.models())
    return ServerLoad(
        server_load=round(sum(model.num_in_flight for model in models)), started_s=started_s, at_s=now_s, models=models
    )


def _model_load(model: HostedModel, metrics: ModelMetrics | None, now_s: float) -> ModelLoad:
    snapshots = [replica.snapshot for replica in model.replicas]
    return ModelLoad(
        model_name=model.name,
        state=model.state.value,
        num_in_flight=metrics.num_in_flight if metrics is not None else 0,
        num_waiting=sum(snapshot.num_waiting for snapshot in snapshots),
        request_seconds=metrics.request_seconds(now_s) if metrics is not None else 0.0,
        queued_units=sum(snapshot.queued_units for snapshot in snapshots),
        units_per_s=sum(snapshot.units_per_s for snapshot in snapshots),
        cache_use=max(
            (snapshot.metrics[CACHE_USE] for snapshot in snapshots if CACHE_USE in snapshot.metrics), default=None
        ),
        steps=_step_work(snapshots),
    )


def _step_work(snapshots: Sequence[ReplicaSnapshot]) -> StepWork | None:
    telling = [each.metrics for each in snapshots if INPUT_TOKENS in each.metrics and OUTPUT_TOKENS in each.metrics]
    if not telling:
        return None
    return StepWork(
        num_steps=sum(metrics.get("steps_total", 0.0) for metrics in telling),
        seconds=sum(metrics.get("step_seconds_total", 0.0) for metrics in telling),
        input_tokens=sum(metrics[INPUT_TOKENS] for metrics in telling),
        output_tokens=sum(metrics[OUTPUT_TOKENS] for metrics in telling),
        budget_units=min(metrics.get("step_budget_units", 0.0) for metrics in telling),
    )
