"""Traces through the gateway: below the caller's, a span for each try, and replicas that go on below the try."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from sixfold.core.serving.request_record import ACCESS_LOG
from sixfold.core.serving.settings import ServerSettings
from sixfold.core.telemetry.opening import open_tracing
from sixfold.core.telemetry.settings import TelemetrySettings
from sixfold.scaling.gateway.app import Gateway
from sixfold.scaling.gateway.settings import GatewaySettings
from tests.core.telemetry.collector import Collector
from tests.core.telemetry.test_logs import Lines
from tests.scaling.gateway.scripted import NOTHING, Reply, ScriptedReplica, fleet, run_gateway

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def traced(collector: Collector, replicas: list[ScriptedReplica], *, ratio: float = 1.0, **headers: str) -> None:
    """One request through a gateway that traces."""
    tracing = open_tracing(TelemetrySettings(endpoint=collector.endpoint, sample_ratio=ratio, service_name="gate"))
    assert tracing is not None
    for replica in replicas:
        await replica.start()
    settings = GatewaySettings.model_validate(
        {
            "routing": {"policy": "round_robin"},
            "health": {"interval_s": 1000.0},
            "replicas": [replica.url for replica in replicas],
            "server": ServerSettings(port=0, drain_timeout_s=5.0),
        }
    )
    try:
        async with run_gateway(Gateway(settings, tracing=tracing)) as running:
            status, _body, _headers = await running.ask(**headers)
            assert status == 200
            await running.ask(path="/metrics", method="GET")
    finally:
        tracing.close()
        for replica in replicas:
            await replica.kill()


async def test_each_try_is_a_span_and_its_replica_goes_on_below_it() -> None:
    refusing = ScriptedReplica("a", Reply(status=503))
    with Collector() as collector:
        await traced(collector, [refusing, answering := ScriptedReplica("b")], traceparent=CALLER)
    assert {span.service for span in collector.spans} == {"gate"}
    assert {span.trace_id for span in collector.spans} == {CALLER.split("-")[1]}
    root = collector.one("POST /v1/completions")
    assert (root.parent_id, root.kind) == (CALLER.split("-")[2], "SPAN_KIND_SERVER")
    below = collector.below(root)
    tries = {name: span for name, span in below.items() if name.startswith("try ")}
    assert set(below) == {"receive", "queue", "send", *tries}
    for replica in (refusing, answering):
        for seen in replica.seen:
            (span,) = (span for span in tries.values() if span.span_id == seen.headers["traceparent"].split("-")[2])
            assert span.kind == "SPAN_KIND_CLIENT"
            assert span.attributes["http.response.status_code"] == (503 if replica is refusing else 200)
            assert span.failed is (replica is refusing)
    assert len(tries) == len(refusing.seen) + len(answering.seen)


async def test_a_lost_replica_shows_as_a_failed_try() -> None:
    with Collector() as collector:
        await traced(collector, [ScriptedReplica("a", NOTHING, Reply())])
    spans = sorted((span for span in collector.spans if span.name.startswith("try ")), key=lambda span: span.began_s)
    assert [span.attributes.get("error.type") for span in spans] == ["ReplicaFailed", None]
    assert [span.attributes["http.request.resend_count"] for span in spans] == [0, 1]


async def test_what_the_gateway_does_not_sample_its_replicas_do_not_either() -> None:
    with Collector() as collector:
        await traced(collector, [replica := ScriptedReplica("a")], ratio=0.0)
    assert collector.spans == []
    flags = int(replica.seen[0].headers["traceparent"].rpartition("-")[2], 16)
    assert flags & 1 == 0


async def test_a_gateway_that_traces_nothing_passes_the_callers_trace_on() -> None:
    replica = ScriptedReplica("a")
    async with fleet(replica) as running:
        await running.ask(traceparent=CALLER, tracestate="a=b")
        await running.ask()
    assert (replica.seen[0].headers["traceparent"], replica.seen[0].headers["tracestate"]) == (CALLER, "a=b")
    assert "traceparent" not in replica.seen[1].headers


async def test_the_access_log_of_a_gateway_names_model_and_replica(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, ACCESS_LOG)
    lines = [Lines(logging.Formatter("%(message)s"))]
    logging.getLogger(ACCESS_LOG).addHandler(lines[0])
    found: list[Any] = []
    replica = ScriptedReplica("a", Reply(parts=(json.dumps({"by": "a"}).encode(),)))
    settings = ServerSettings(port=0, drain_timeout_s=5.0, access_log=True)
    try:
        async with fleet(replica, server=settings) as running:
            await running.ask(x_request_id="mine")
            await running.ask({"model": "nobody", "prompt": "open sesame"})
    finally:
        logging.getLogger(ACCESS_LOG).removeHandler(lines[0])
    found = [each for each in caplog.records if each.name == ACCESS_LOG]
    assert [(each.status, each.model, each.error) for each in found] == [
        (200, "m", None),
        (404, None, "model_not_found"),
    ]
    assert found[0].request_id == "mine" and replica.url.rpartition(":")[2] in found[0].replica
    assert not any("sesame" in line for line in lines[0].lines)
