"""What a server says about its load: a sample that an autoscaler can subtract from the next."""

from __future__ import annotations

import pytest

from sixfold.core.serving.metrics import ServingMetrics
from tests.core.serving.fake_replica import FakeModel, FakeReplica, FakeSnapshot
from tests.core.serving.server_thread import ServerThread


def test_the_time_of_requests_in_flight_adds_up_whenever_it_is_looked_at() -> None:
    model = ServingMetrics().model("parrot")
    model.began(10.0)
    model.began(11.0)
    assert model.request_seconds(12.0) == pytest.approx(3.0)
    model.ended(13.0)
    model.ended(14.0)
    assert model.request_seconds(50.0) == pytest.approx(6.0)


def test_load_tells_of_each_model_what_waits_and_how_fast_it_goes() -> None:
    first, second = FakeReplica(), FakeReplica()
    first.snapshot = FakeSnapshot(
        num_waiting=2, queued_units=300, units_per_s=100.0, metrics={"kv_cache_usage_perc": 0.25}
    )
    second.snapshot = FakeSnapshot(
        num_waiting=1, queued_units=100, units_per_s=50.0, metrics={"kv_cache_usage_perc": 0.75}
    )
    with ServerThread(
        FakeModel("parrot", replicas=[first, second]), FakeModel("owl", replicas=[FakeReplica()])
    ) as served:
        assert served.echo("a b").status == 200
        load = served.ask("GET", "/load").json
    parrot, owl = load["models"]
    assert parrot["model_name"] == "parrot"
    assert (parrot["num_waiting"], parrot["queued_units"], parrot["units_per_s"]) == (3, 400, 150.0)
    assert parrot["cache_use"] == 0.75
    assert parrot["request_seconds"] > 0.0
    assert owl["cache_use"] is None
    assert owl["request_seconds"] == 0.0
    assert load["server_load"] == 0
    assert owl["steps"] is None
    assert load["at_s"] > load["started_s"]


def test_load_tells_what_the_steps_of_all_replicas_of_a_model_did() -> None:
    first, second = FakeReplica(), FakeReplica()
    told = {"prompt_tokens_total": 100.0, "generation_tokens_total": 7.0, "steps_total": 9.0, "step_seconds_total": 0.5}
    first.snapshot = FakeSnapshot(metrics={**told, "step_budget_units": 512.0})
    second.snapshot = FakeSnapshot(metrics={**told, "step_budget_units": 256.0})
    with ServerThread(FakeModel("parrot", replicas=[first, second])) as served:
        (parrot,) = served.ask("GET", "/load").json["models"]
    assert parrot["steps"] == {
        "num_steps": 18.0,
        "seconds": 1.0,
        "input_tokens": 200.0,
        "output_tokens": 14.0,
        "budget_units": 256.0,
    }
