"""The decision where others run it: Ray Serve's controller, and Kubernetes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from sixfold.core.autoscaling.load import ModelLoad
from sixfold.core.cli import main
from sixfold.core.errors import ConfigError
from sixfold.core.serving.metrics import ServingMetrics
from sixfold.core.serving.replica_metrics import ReplicaCollector
from sixfold.scaling.autoscale.keda import queries, scaled_object
from sixfold.scaling.autoscale.ray_policy import RayServePolicy, ray_stats
from sixfold.scaling.spec import ScalingSpec, ServiceSpec
from tests.core.serving.fake_replica import FakeDirectory, FakeModel, FakeReplica


@dataclass
class Context:
    """The fields of Ray Serve's AutoscalingContext that are read."""

    running_replicas: list[Any] = field(default_factory=list[Any])
    target_num_replicas: int = 1
    total_num_requests: float = 0.0
    total_queued_requests: float | None = None
    aggregated_metrics: dict[str, dict[Any, float]] = field(default_factory=dict[str, dict[Any, float]])
    policy_state: dict[str, Any] = field(default_factory=dict[str, Any])
    current_time: float | None = 100.0
    deployment_name: str = "chat"


def test_ray_gets_the_same_decision_and_hands_the_state_back() -> None:
    policy = RayServePolicy({"concurrency_target": 10, "max_replicas": 8, "scale_down_delay_s": 0})
    count, state = policy(Context(running_replicas=["a"], total_num_requests=25.0))
    assert count == 4
    count, _ = policy(Context(running_replicas=["a"], target_num_replicas=4, policy_state=state, current_time=102.0))
    assert count == 4  # a panic: the load of two seconds ago is still in the window, and nothing shrinks


def test_requests_that_serve_does_not_see_are_counted_by_what_replicas_report() -> None:
    policy = RayServePolicy({"concurrency_target": 10, "max_replicas": 8})
    stats = ray_stats(ModelLoad(model_name="chat", num_in_flight=25, cache_use=None))
    assert "cache_use" not in stats
    context = Context(running_replicas=["a"], aggregated_metrics={name: {"a": value} for name, value in stats.items()})
    assert policy(context)[0] == 4


def test_a_controller_that_lost_its_state_keeps_the_running_replicas() -> None:
    policy = RayServePolicy({"concurrency_target": 10, "max_replicas": 20, "scale_down_delay_s": 0})
    assert policy(Context(running_replicas=list("abcdefgh"), target_num_replicas=8))[0] == 8


def test_a_request_at_a_handle_starts_the_first_replica() -> None:
    assert (
        RayServePolicy({"max_replicas": 3})(
            Context(target_num_replicas=0, total_num_requests=1.0, total_queued_requests=1.0)
        )[0]
        == 2
    )


def test_a_misspelt_key_of_the_policy_is_named_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match="concurrency_target"):
        RayServePolicy({"concurency_target": 10})


def test_the_policy_imports_nothing_of_ray() -> None:
    code = "import sys, sixfold.scaling.autoscale.ray_policy; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_manifest_says_the_targets_bounds_and_delays_of_the_service() -> None:
    spec = ScalingSpec(concurrency_target=10, target_drain_s=2, target_cache_use=0.8, min_replicas=1, max_replicas=9)
    manifest = yaml.safe_load(
        scaled_object(ServiceSpec(model="chat", scaling=spec), name="web", prometheus="http://p:9090")
    )
    assert manifest["kind"] == "ScaledObject"
    assert (manifest["spec"]["minReplicaCount"], manifest["spec"]["maxReplicaCount"]) == (1, 9)
    assert manifest["spec"]["cooldownPeriod"] == 900
    thresholds = [trigger["metadata"]["threshold"] for trigger in manifest["spec"]["triggers"]]
    assert thresholds == ["7", "1.4", "0.56"]
    assert all(
        isinstance(value, str) for trigger in manifest["spec"]["triggers"] for value in trigger["metadata"].values()
    )


def test_the_queries_name_metrics_that_a_server_has() -> None:
    served = FakeModel("chat", replicas=[FakeReplica()])
    metrics = ServingMetrics()
    metrics.model("chat")
    known = {family.name for family in ReplicaCollector(FakeDirectory(served), metrics).collect()}
    spec = ScalingSpec(target_drain_s=2)
    for query in queries(spec, "chat"):
        for word in query.text.replace("(", " ").replace("{", " ").split():
            if word.startswith("sixfold:"):
                assert word.removesuffix("_total") in known, word


def test_a_models_name_cannot_break_out_of_its_query() -> None:
    (query,) = queries(ScalingSpec(), 'a"} or vector(1) #')
    assert r"a\"} or vector(1) #" in query.text


def test_the_command_prints_a_manifest_and_names_the_line_of_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("model: chat\nscaling: {max_replicas: 4, concurrency_target: 16}\n", encoding="utf-8")
    assert main(["scaled-object", str(file), "--name", "chat"]) == 0
    assert "maxReplicaCount: 4" in capsys.readouterr().out
    file.write_text("model: chat\nscaling: {max_replica: 4}\n", encoding="utf-8")
    assert main(["scaled-object", str(file), "--name", "chat"]) == 2
    assert "max_replicas" in capsys.readouterr().err


def test_an_objective_that_ray_can_not_tell_about_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy_kwargs\.scaling\.slo"):
        RayServePolicy({"slo": {"ttft_s": 1.0}})
