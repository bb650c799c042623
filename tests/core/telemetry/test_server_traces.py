"""Traces of a real server, as an OTLP collector gets them: joined to the caller's, with every stage, and free of secrets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from sixfold.core.errors import QueueFull, StepFailed
from sixfold.core.messages import ReplicaTrace, StepGroup
from sixfold.core.serving.settings import ApiKeySettings, ServerSettings, hash_key
from sixfold.core.telemetry.opening import open_tracing
from sixfold.core.telemetry.settings import TelemetrySettings
from sixfold.core.telemetry.tracing import Tracing, open_otlp
from tests.core.serving.fake_replica import TIMEOUT_S, FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread
from tests.core.telemetry.collector import Collector

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WORKER = ReplicaTrace(
    process_id=77,
    ready_s=1e-6,
    first_step_s=2e-6,
    first_output_s=3e-6,
    last_step_s=4e-6,
    steps=(
        StepGroup(began_s=2e-6, ended_s=3e-6, units=9, max_batch_sequences=2),
        StepGroup(began_s=3e-6, ended_s=4e-6, num_steps=5, units=5, max_batch_sequences=3),
    ),
    num_preemptions=1,
)


@contextmanager
def traced(
    collector: Collector, replica: FakeReplica, *, settings: ServerSettings | None = None, **telemetry: object
) -> Generator[tuple[ServerThread, Tracing]]:
    """A server whose spans go to the collector."""
    wanted = TelemetrySettings.model_validate({"endpoint": collector.endpoint, **telemetry})
    tracing = open_tracing(wanted)
    assert tracing is not None
    try:
        with ServerThread(FakeModel("parrot", replicas=[replica]), settings=settings, tracing=tracing) as server:
            yield server, tracing
    finally:
        tracing.close()


def test_a_request_joins_its_callers_trace_with_all_its_stages() -> None:
    replica = FakeReplica(by_hand=True)

    def answer() -> None:
        asked = replica.next()
        assert asked.request.trace_id == CALLER.split("-")[1]
        asked.say("a")
        asked.finish("a b", trace=WORKER)

    with Collector() as collector, traced(collector, replica, headers={"x-token": "of-the-collector"}) as (server, _):
        helper = threading.Thread(target=answer)
        helper.start()
        assert server.echo("a b", headers={"traceparent": CALLER, "x-request-id": "mine"}).status == 200
        helper.join(TIMEOUT_S)
    assert collector.headers["x-token"] == "of-the-collector"
    assert {span.trace_id for span in collector.spans} == {CALLER.split("-")[1]}
    root = collector.one("POST /v1/echo")
    assert (root.parent_id, root.kind, root.failed) == (CALLER.split("-")[2], "SPAN_KIND_SERVER", False)
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["sixfold.request_id"] == "mine"
    below = collector.below(root)
    assert set(below) == {"receive", "echo parrot", "send"}
    work = below["echo parrot"]
    assert work.attributes["gen_ai.operation.name"] == "echo"
    assert work.attributes["gen_ai.request.model"] == "parrot"
    assert work.attributes["gen_ai.usage.input_tokens"] == 2
    assert work.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert work.attributes["gen_ai.server.time_to_first_token"] > 0
    assert (work.attributes["process.pid"], work.attributes["sixfold.num_steps"]) == (77, 6)
    stages = collector.below(work)
    assert list(stages) == ["prepare", "queue", "first output", "further output", "finish"]
    assert [name for name, _values in stages["first output"].events] == ["steps"]
    ((_name, steps),) = stages["further output"].events
    assert (steps["sixfold.num_steps"], steps["sixfold.max_batch_sequences"]) == (5, 3)
    for parent, children in ((root, below.values()), (work, stages.values())):
        for child in children:
            assert parent.began_s <= child.began_s <= child.ended_s <= parent.ended_s, child.name


@pytest.mark.parametrize(("flag", "ratio", "is_traced"), [("01", 0.0, True), ("00", 1.0, False)])
def test_the_callers_decision_to_sample_holds(flag: str, ratio: float, is_traced: bool) -> None:
    with Collector() as collector, traced(collector, FakeReplica(), sample_ratio=ratio) as (server, _):
        server.echo(headers={"traceparent": CALLER[:-2] + flag})
    assert bool(collector.spans) is is_traced


def test_requests_without_a_caller_are_sampled_by_the_ratio_and_probes_never() -> None:
    with Collector() as collector, traced(collector, FakeReplica(), sample_ratio=1.0) as (server, _):
        for path in ("/health", "/ready", "/metrics", "/load"):
            server.ask("GET", path)
        server.echo(headers={"traceparent": "no-such-thing"})
    assert [span.name for span in collector.spans if not span.parent_id] == ["POST /v1/echo"]
    with Collector() as collector, traced(collector, FakeReplica(), sample_ratio=0.0) as (server, _):
        server.echo()
    assert collector.spans == []


def test_failures_are_marked_by_their_kind_and_never_quote_the_request() -> None:
    replica = FakeReplica(by_hand=True)
    with Collector() as collector, traced(collector, replica) as (server, _):
        helper = threading.Thread(target=lambda: replica.next().fail(StepFailed("it said open sesame")))
        helper.start()
        assert server.echo("open sesame").status == 500
        helper.join(TIMEOUT_S)
        replica.rejection = QueueFull("full", retry_after_s=1.0)
        assert server.echo("open sesame").status == 429
    failed, refused = (span for span in collector.spans if span.name == "POST /v1/echo")
    assert failed.failed and not refused.failed  # 429 is no fault of the server
    assert failed.attributes["error.type"] == "model_step_failed"
    assert b"sesame" not in b"".join(collector.bodies)


def test_what_clients_send_is_in_a_trace_only_where_the_operator_wants_it() -> None:
    keys = (ApiKeySettings(name="ann", sha256=hash_key("sk-very-secret-key")),)
    bearer = {"authorization": "Bearer sk-very-secret-key"}
    for wanted in (False, True):
        with Collector() as collector:
            settings = ServerSettings(api_keys=keys)
            with traced(collector, FakeReplica(), settings=settings, record_content=wanted) as (server, _):
                assert server.echo("open sesame", headers=bearer).status == 200
        sent = b"".join(collector.bodies)
        assert (b"open sesame" in sent) is wanted
        assert b"secret" not in sent
        assert collector.one("POST /v1/echo").attributes["sixfold.tenant"] == "ann"


class StuckExporter(SpanExporter):
    """A collector that never answers."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self.num_spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_spans += len(spans)
        self.entered.set()
        self.leave.wait(TIMEOUT_S)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.leave.set()


def test_a_collector_that_hangs_costs_spans_and_no_request() -> None:
    exporter = StuckExporter()
    processor = BatchSpanProcessor(exporter, max_queue_size=512, max_export_batch_size=1, schedule_delay_millis=1)
    tracing = open_otlp(TelemetrySettings(endpoint="http://127.0.0.1:9"), processor=processor)
    replica = FakeReplica()
    with ServerThread(FakeModel("parrot", replicas=[replica]), tracing=tracing) as server:
        for _request in range(200):  # three spans each: more than the queue holds
            assert server.echo().status == 200
        assert exporter.entered.wait(TIMEOUT_S)
    assert exporter.num_spans == 1  # the first export still hangs
    exporter.leave.set()
    tracing.close()
    assert exporter.num_spans <= 513


def test_a_collector_that_is_gone_costs_no_request_and_little_at_the_end() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        tracing = open_tracing(TelemetrySettings(endpoint=endpoint, export_timeout_s=0.2))
        assert tracing is not None
        with ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), tracing=tracing) as server:
            assert [server.echo().status for _request in range(5)] == [200] * 5
        tracing.close()


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    assert open_tracing(TelemetrySettings()) is None
    with ServerThread(FakeModel("parrot", replicas=[replica := FakeReplica(by_hand=True)])) as server:
        helper = threading.Thread(target=server.echo, kwargs={"headers": {"traceparent": CALLER}})
        helper.start()
        asked = replica.next()
        assert asked.request.trace_id is None
        asked.finish("a")
        helper.join(TIMEOUT_S)
