"""A request through real processes, gateway, server and worker, is one trace; and each process logs objects."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import yaml

from tests.core.telemetry.collector import Collector
from tests.e2e.conftest import install_reverse
from tests.servers import DemoServer, start_server, stop_server

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
JSON = ("--log-format", "json")


def write(folder: Path, name: str, settings: object) -> Path:
    (folder / name).mkdir()
    path = folder / name / "sixfold.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_one_trace_joins_gateway_server_and_worker(tmp_path: Path) -> None:
    site, files = install_reverse(tmp_path)
    with Collector() as collector:
        telemetry = {"telemetry": {"endpoint": collector.endpoint}}
        http = {"server": {"port": 0, "access_log": True}}
        models = {"models": {"mirror": {"source": f"file:{files}"}}}
        env = os.environ | {"PYTHONPATH": str(site)}
        server = start_server(write(tmp_path, "server", models | http | telemetry), env, options=JSON)
        try:
            gateway = start_server(
                write(tmp_path, "gateway", {"replicas": [server.url]} | http | telemetry),
                command="gateway",
                options=JSON,
            )
            try:
                answer = httpx.post(
                    f"{gateway.url}/v1/reverse",
                    json={"model": "mirror", "text": "stressed"},
                    headers={"traceparent": CALLER, "x-request-id": "mine"},
                )
                assert answer.raise_for_status().json()["text"] == "desserts"
            finally:
                assert stop_server(gateway) == 0
        finally:
            assert stop_server(server) == 0
    spans = collector.spans
    assert {span.trace_id for span in spans} == {CALLER.split("-")[1]}
    by_gateway, by_server = (
        next(span for span in spans if span.service == service and span.kind == "SPAN_KIND_SERVER")
        for service in ("sixfold-gateway", "sixfold")
    )
    assert by_gateway.parent_id == CALLER.split("-")[2]
    (tried,) = (span for span in spans if span.span_id == by_server.parent_id)
    assert tried.parent_id == by_gateway.span_id and tried.kind == "SPAN_KIND_CLIENT"
    work = collector.below(by_server)["reverse mirror"]
    assert work.attributes["sixfold.num_steps"] == len("stressed")
    assert work.attributes["process.pid"] not in (server.process.pid, gateway.process.pid, os.getpid())
    assert {"prepare", "queue", "first output", "further output"} <= set(collector.below(work))
    check_logs(server, gateway)


def check_logs(server: DemoServer, gateway: DemoServer) -> None:
    for process in (server, gateway):
        lines = [json.loads(line) for line in process.log.splitlines()]
        (access,) = (line for line in lines if line["logger"] == "sixfold.access" and line["route"] == "/v1/reverse")
        assert (access["request_id"], access["model"], access["status"]) == ("mine", "mirror", 200)
        assert access["trace_id"] == CALLER.split("-")[1]
        assert "stressed" not in process.log


def test_a_workers_lines_tell_model_replica_and_request(
    tmp_path: Path, start_config: Callable[..., DemoServer]
) -> None:
    site, files = install_reverse(tmp_path)
    model = site / "sixfold_reverse" / "model.py"
    model.write_text(
        model.read_text().replace("running.left[-1]", 'running.left[-1] if running.left != "!" else 1 / 0')
    )
    config = write(tmp_path, "server", {"models": {"mirror": {"source": f"file:{files}"}}, "server": {"port": 0}})
    server = start_config(config, os.environ | {"PYTHONPATH": str(site)}, options=JSON)
    asked = httpx.post(
        f"{server.url}/v1/reverse", json={"model": "mirror", "text": "!"}, headers={"x-request-id": "mine"}
    )
    assert asked.status_code == 500
    lines = [json.loads(line) for line in server.log.splitlines()]
    (failed,) = (line for line in lines if "ZeroDivisionError" in line.get("exception", ""))
    assert (failed["model"], failed["replica"], failed["request_id"]) == ("mirror", 0, "mine")
    assert failed["pid"] != server.process.pid
