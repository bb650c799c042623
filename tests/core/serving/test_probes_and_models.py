"""What machines read: health, readiness, metrics, the list of models and the OpenAPI document."""

from __future__ import annotations

import json

import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from sixfold.core.decisions import Decision
from sixfold.core.errors import StepFailed
from sixfold.core.messages import Timing
from sixfold.core.serving.directory import ModelState
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from tests.core.serving.fake_replica import FakeModel, FakeReplica, FakeSnapshot
from tests.core.serving.server_thread import ServerThread


def test_health_is_about_the_process_and_ready_about_the_models() -> None:
    model = FakeModel("parrot", state=ModelState.LOADING, replicas=[FakeReplica()])
    with ServerThread(model) as served:
        assert served.ask("GET", "/health").status == 200
        loading = served.ask("GET", "/ready")
        store_id = loading.json["store_id"]
        assert loading.status == 503
        assert loading.json == {"status": "loading", "store_id": store_id, "models": {"parrot": "loading"}}
        model.state = ModelState.READY
        ready = served.ask("GET", "/ready")
        assert ready.status == 200
        assert ready.json == {"status": "ready", "store_id": store_id, "models": {"parrot": "ready"}}
        served.directory.draining = True
        draining = served.ask("GET", "/ready")
        assert (draining.status, draining.json["status"]) == (503, "draining")
        refused = served.echo()
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "draining", "1")


def test_a_model_whose_workers_are_gone_is_not_ready_for_metrics_and_restarting_for_people() -> None:
    model = FakeModel("parrot", replicas=[FakeReplica()])
    with ServerThread(model) as served:
        assert served.metric("sixfold:model_ready", model_name="parrot") == 1
        model.replicas = ()
        assert served.metric("sixfold:model_ready", model_name="parrot") == 0
        assert served.ask("GET", "/ready").json["models"] == {"parrot": "restarting"}


def test_counters_of_failures_stand_at_0_before_the_first_request_so_that_the_first_failure_is_a_rise() -> None:
    with ServerThread(FakeModel("parrot")) as served:
        served.ask("GET", "/metrics")
        families = text_string_to_metric_families(served.ask("GET", "/metrics").body.decode())
        reasons = {
            family.name: {sample.labels["reason"]: sample.value for sample in family.samples}
            for family in families
            if family.name in ("sixfold:requests_failed", "sixfold:admission_rejections")
        }
    assert reasons["sixfold:requests_failed"]["worker_died"] == 0
    for reason in ("queue_full", "model_failed", "load_failed", "loading", "worker_died"):
        assert reasons["sixfold:admission_rejections"][reason] == 0


def test_load_balancers_may_probe_with_head(served: ServerThread) -> None:
    for path in ("/", "/health", "/ready"):
        answer = served.ask("HEAD", path)
        assert (answer.status, answer.body) == (200, b"")


def test_models_are_listed_with_aliases_as_ids(served: ServerThread) -> None:
    listed = served.ask("GET", "/v1/models").json
    assert listed["object"] == "list"
    assert listed["data"][0] == {
        "id": "parrot",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "sixfold",
        "root": "parrot",
        "parent": None,
        "permission": [],
        "max_model_len": 512,
        "modality": "echo",
        "capabilities": ["echo"],
        "state": "ready",
        "memory_bytes": 4000,
        "parameters": 1000,
        "details": {},
    }
    assert listed["data"][1]["id"] == "org/parrot-1"
    assert listed["data"][1]["root"] == "parrot"


def test_a_model_is_found_by_an_id_with_slashes(served: ServerThread) -> None:
    assert served.ask("GET", "/v1/models/org/parrot-1").json["id"] == "org/parrot-1"
    assert served.ask("GET", "/v1/models/org%2Fparrot-1").json["id"] == "org/parrot-1"
    missing = served.ask("GET", "/v1/models/org/nobody")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


def test_the_openai_client_lists_models(served: ServerThread) -> None:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["parrot", "org/parrot-1"]
        assert client.models.retrieve("org/parrot-1").created == 1_700_000_000


def test_metrics_are_prometheus_text_with_the_promised_names(served: ServerThread) -> None:
    assert served.echo("a b c").status == 200
    assert served.echo("a").status == 200
    assert served.echo(model="nobody").status == 404
    answer = served.ask("GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "num_sequences_running",
        "request_queue_time_seconds",
        "request_inference_time_seconds",
        "e2e_request_latency_seconds",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "request_success",
        "requests_failed",
        "admission_rejections",
        "num_preemptions",
        "http_requests",
        "request_batch_sequences",
        "max_batch_sequences",
    ):
        assert f"sixfold:{name}" in families, name
    assert b"_created" not in answer.body
    assert served.metric("sixfold:request_success_total", model_name="parrot", finished_reason="stop") == 2
    assert served.metric("sixfold:e2e_request_latency_seconds_count", model_name="parrot") == 2
    assert served.metric("sixfold:time_to_first_token_seconds_count", model_name="parrot") == 1
    assert served.metric("sixfold:prompt_tokens_total", model_name="parrot") == 4
    assert served.metric("sixfold:http_requests_total", route="/v1/echo", method="POST", status="200") == 2
    assert served.metric("sixfold:http_requests_total", route="/v1/echo", method="POST", status="404") == 1


def test_routes_that_do_not_exist_share_one_label(served: ServerThread) -> None:
    for path in ("/a", "/b", "/c"):
        served.ask("GET", path)
    served.ask("BREW", "/a")
    assert served.metric("sixfold:http_requests_total", route="none", method="GET", status="404") == 3


def test_the_timing_of_a_request_reaches_the_histograms() -> None:
    replica = FakeReplica(by_hand=True)
    with ServerThread(FakeModel("parrot", replicas=[replica])) as served:
        connection = served.connect()
        connection.request("POST", "/v1/echo", json.dumps({"model": "parrot", "input": "a"}))
        submitted = replica.next()
        submitted.say("x", "y")
        submitted.say("z")
        submitted.finish(timing=Timing(queue_s=0.25, inference_s=2.0, max_batch_sequences=64))
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["text"]) == (200, "")
        assert served.metric("sixfold:request_queue_time_seconds_sum", model_name="parrot") == 0.25
        assert served.metric("sixfold:request_inference_time_seconds_sum", model_name="parrot") == 2.0
        assert served.metric("sixfold:request_batch_sequences_bucket", model_name="parrot", le="32.0") == 0
        assert served.metric("sixfold:request_batch_sequences_bucket", model_name="parrot", le="64.0") == 1
        connection.request("POST", "/v1/echo", json.dumps({"model": "parrot", "input": "a"}))
        replica.next().fail(StepFailed("no"))
        assert connection.getresponse().status == 500
        assert served.metric("sixfold:requests_failed_total", model_name="parrot", reason="model_step_failed") == 1
        connection.close()


def test_replicas_report_their_own_values_by_engine() -> None:
    replicas = [
        FakeReplica(
            snapshot=FakeSnapshot(
                num_running=5,
                num_waiting=2,
                queued_units=70,
                units_per_s=10.0,
                metrics={"echo_depth": depth, "echoes_total": 9.0, "undeclared": 1.0, "max_batch_sequences": 64},
            )
        )
        for depth in (3.0, 4.0)
    ]
    with ServerThread(FakeModel("parrot", replicas=replicas), FakeModel("owl")) as served:
        assert served.metric("sixfold:echo_depth", model_name="parrot", engine="0") == 3.0
        assert served.metric("sixfold:echo_depth", model_name="parrot", engine="1") == 4.0
        assert served.metric("sixfold:echoes_total", model_name="parrot", engine="1") == 9.0
        assert served.metric("sixfold:num_sequences_running", model_name="parrot", engine="0") == 5
        assert served.metric("sixfold:num_requests_waiting", model_name="parrot", engine="0") == 2
        assert served.metric("sixfold:max_batch_sequences", model_name="parrot", engine="0") == 64
        assert b"undeclared" not in served.ask("GET", "/metrics").body


def test_decisions_are_for_keys_that_may_change_models() -> None:
    told = Decision(number=1, time_s=5.0, what="step_budget_units", before=64, after=96, reason="r", objective="o")
    keys = (
        ApiKeySettings(name="admin", sha256=hash_key("a"), changes_models=True),
        ApiKeySettings(name="ward", sha256=hash_key("w")),
    )
    replica = FakeReplica(snapshot=FakeSnapshot(decisions=(told,)))
    with ServerThread(FakeModel("parrot", replicas=[replica]), settings=ServerSettings(api_keys=keys)) as served:
        assert served.ask("GET", "/decisions").status == 401
        refused = served.ask("GET", "/decisions", headers={"authorization": "Bearer w"})
        assert (refused.status, refused.json["error"]["code"]) == (403, "permission_denied")
        (shown,) = served.ask("GET", "/decisions", headers={"authorization": "Bearer a"}).json["data"]
        assert (shown["source"], shown["from"], shown["to"]) == ("parrot/0", 64, 96)


def test_the_openapi_document_describes_bodies_and_errors(served: ServerThread) -> None:
    document = served.ask("GET", "/openapi.json").json
    operation = document["paths"]["/v1/echo"]["post"]
    assert operation["summary"] == "Says what it hears."
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert set(schema["required"]) == {"model", "input"}
    assert "Part" in document["components"]["schemas"]
    assert {header["name"] for header in operation["parameters"]} >= {"x-priority", "x-request-timeout-s"}
    assert "/v1/models" in document["paths"]
    assert served.ask("GET", "/docs").status == 200


def test_scripts_of_configured_origins_may_call_and_read_errors() -> None:
    settings = ServerSettings(cors_origins=("https://ward.example",))
    with ServerThread(FakeModel("parrot"), settings=settings) as served:
        asked = {"origin": "https://ward.example", "access-control-request-method": "POST"}
        preflight = served.ask("OPTIONS", "/v1/echo", headers=asked)
        assert preflight.headers["access-control-allow-origin"] == "https://ward.example"
        answer = served.echo(model="nobody", headers={"origin": "https://ward.example"})
        assert answer.status == 404
        assert answer.headers["access-control-allow-origin"] == "https://ward.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        other = served.ask("GET", "/v1/models", headers={"origin": "https://elsewhere.example"})
        assert other.status == 200
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://elsewhere.example", 403),
        ("http://127.0.0.1:1", 403),
        ("http://[", 403),
        ("null", 403),
        ("https://ward.example", 200),
        ("the server's own", 200),
        (None, 200),
    ],
)
def test_pages_of_other_origins_cannot_post_what_browsers_send_without_asking(origin: str | None, status: int) -> None:
    settings = ServerSettings(cors_origins=("https://ward.example",))
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), settings=settings) as served:
        own = f"http://127.0.0.1:{served.port}" if origin == "the server's own" else origin
        headers = (
            {"content-type": "application/json"} if own is None else {"content-type": "application/json", "origin": own}
        )
        answer = served.echo(headers=headers)
        assert answer.status == status
        kind = {"content-type": "multipart/form-data; boundary=b"}
        form = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b--\r\n'
        uploaded = served.ask("POST", "/v1/files", form, {**headers, **kind})
        assert uploaded.status == (403 if status == 403 else 400), "400: it is read, and has no file"
        if status == 403:
            assert "cors_origins" in answer.json["error"]["message"]
        assert served.ask("DELETE", "/v1/files/file-none", headers=headers).status == (403 if status == 403 else 404)


def test_names_that_a_family_offers_are_listed_with_their_model_as_parent() -> None:
    parrot = FakeModel("parrot", replicas=[FakeReplica()], variants=("parrot-pirate",))
    with ServerThread(parrot) as served:
        listed = served.ask("GET", "/v1/models").json["data"]
        assert [(model["id"], model["parent"]) for model in listed] == [("parrot", None), ("parrot-pirate", "parrot")]
        assert served.ask("GET", "/v1/models/parrot-pirate").json["root"] == "parrot"
        assert served.echo(model="parrot-pirate").status == 200
