"""What a client gets back: answers, every error, ids and limits of bodies."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from sixfold.core.errors import ContextLengthExceeded, QueueFull, RequestError, StepFailed, WorkerDied
from sixfold.core.messages import Priority
from sixfold.core.serving.directory import ModelState
from sixfold.core.serving.error_responses import sanitize
from sixfold.core.serving.settings import ServerSettings
from tests.core.serving.fake_replica import MUTE, TIMEOUT_S, FakeModel, FakeReplica
from tests.core.serving.server_thread import ServerThread


def test_an_answer_repeats_the_name_that_the_client_used(served: ServerThread) -> None:
    answer = served.echo("hello there", model="org/parrot-1")
    assert answer.status == 200
    assert answer.json == {"model": "org/parrot-1", "text": "hello there"}
    assert answer.headers["content-type"] == "application/json"


def test_a_model_that_does_not_exist_is_404_and_the_message_names_those_that_do(served: ServerThread) -> None:
    answer = served.echo(model="nobody")
    assert answer.status == 404
    assert answer.error["code"] == "model_not_found"
    assert answer.error["param"] == "model"
    assert "parrot" in answer.error["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_a_model_of_another_kind_is_404_and_says_what_it_offers() -> None:
    mute = FakeModel("mute", family=MUTE, replicas=[FakeReplica()])
    with ServerThread(mute, FakeModel("parrot", replicas=[FakeReplica()])) as served:
        answer = served.echo(model="mute")
        assert answer.status == 404
        assert "mime" in answer.error["message"]
        assert "parrot" in answer.error["message"]


@pytest.mark.parametrize(
    ("state", "code", "retry_after"),
    [
        (ModelState.LOADING, "loading", "5"),
        (ModelState.DRAINING, "draining", "1"),
        (ModelState.FAILED, "model_failed", None),
    ],
)
def test_a_model_that_is_not_ready_is_503(state: ModelState, code: str, retry_after: str | None) -> None:
    with ServerThread(FakeModel("parrot", state=state)) as served:
        answer = served.echo()
        assert answer.status == 503
        assert answer.error["code"] == code
        assert answer.headers.get("retry-after") == retry_after
        assert served.metric("sixfold:admission_rejections_total", model_name="parrot", reason=code) == 1


def test_a_model_whose_family_is_not_known_yet_is_loading() -> None:
    with ServerThread(FakeModel("parrot", family=None, state=ModelState.LOADING, info=None)) as served:
        assert served.echo().error["code"] == "loading"
        assert served.ask("GET", "/v1/models").json["data"][0]["modality"] is None
        assert served.ask("GET", "/metrics").status == 200


def test_a_model_whose_workers_all_died_is_503_with_retry_after() -> None:
    model = FakeModel("parrot", replicas=[])
    model.back_in_s = 6.5
    with ServerThread(model) as served:
        answer = served.echo()
        assert answer.status == 503
        assert answer.error["code"] == "worker_died"
        assert answer.headers["retry-after"] == "7", "when the model knows a worker to be back, in whole seconds"


@pytest.mark.parametrize(
    ("body", "code", "param", "text"),
    [
        (b"{", "invalid_json", None, "not valid JSON"),
        (b"", "invalid_json", None, "empty"),
        (b'{"model": "parrot", "input": NaN}', "invalid_json", None, "not valid JSON"),
        (b'\xff{"model": "parrot"}', "invalid_json", None, "not valid JSON"),
        (b"[" * 100_000, "invalid_json", None, "not valid JSON"),
        (b"[]", "invalid_type", None, "object"),
        (b'{"input": "a"}', "missing_required_parameter", "model", "Missing required parameter 'model'"),
        (b'{"model": 5, "input": "a"}', "invalid_type", "model", "string"),
        (b'{"model": "parrot", "input": 5}', "invalid_type", "input", "string"),
        (b'{"model": "parrot", "input": ["a", 5]}', "invalid_type", "input.1", "string"),
        (b'{"model": "parrot", "input": "a", "top_p": 2}', "invalid_value", "top_p", "less than or equal to 1"),
        (b'{"model": "parrot", "input": "a", "top_p": "1"}', "invalid_type", "top_p", "number"),
        (
            b'{"model": "parrot", "input": "a", "topp": 1}',
            "unknown_parameter",
            "topp",
            "Unknown parameter 'topp'. Did you mean 'top_p'?",
        ),
        (b'{"model": "parrot", "input": "a", "zzz": 1}', "unknown_parameter", "zzz", "Unknown parameter 'zzz'."),
        (
            b'{"model": "parrot", "input": "a", "parts": [{"content": "x"}, {"contents": "x"}]}',
            "missing_required_parameter",
            "parts.1.content",
            "parts.1.content",
        ),
        (
            b'{"model": "parrot", "input": "a", "parts": [{"content": "x", "kindd": "x"}]}',
            "unknown_parameter",
            "parts.0.kindd",
            "Did you mean 'kind'?",
        ),
        (
            b'{"model": "parrot", "input": "a", "parts": [{"content": "x", "kind": "sound"}]}',
            "invalid_value",
            "parts.0.kind",
            "'text' or 'image'",
        ),
        (
            b'{"model": "parrot", "input": "a", "parts": [{"content": [1]}]}',
            "invalid_type",
            "parts.0.content.0",
            "string",
        ),
    ],
)
def test_a_bad_body_is_400_and_names_the_parameter(
    served: ServerThread, body: bytes, code: str, param: str | None, text: str
) -> None:
    answer = served.ask("POST", "/v1/echo", body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert (answer.error["code"], answer.error["param"]) == (code, param)
    assert text in answer.error["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_body_that_is_said_not_to_be_json_is_400(served: ServerThread, kind: str) -> None:
    answer = served.echo(headers={"content-type": kind})
    assert answer.status == 400
    assert answer.error["code"] == "unsupported_content_type"


@pytest.mark.parametrize("kind", ["", "application/json; charset=utf-8", "application/vnd.api+json"])
def test_json_may_be_labelled_in_all_usual_ways(served: ServerThread, kind: str) -> None:
    assert served.echo(headers={"content-type": kind}).status == 200


def test_unknown_routes_and_methods_have_the_same_error_shape(served: ServerThread) -> None:
    missing = served.ask("GET", "/v1/nothing/here")
    assert (missing.status, missing.error["code"]) == (404, "not_found")
    assert "/v1/nothing/here" in missing.error["message"]
    wrong = served.ask("GET", "/v1/echo")
    assert (wrong.status, wrong.error["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert served.ask("POST", "/v1/echo/", {}).status == 404


def test_a_defect_is_500_without_details_and_with_the_request_id(
    served: ServerThread, caplog: pytest.LogCaptureFixture
) -> None:
    answer = served.ask("POST", "/v1/defect", {}, {"x-request-id": "abc-1"})
    assert answer.status == 500
    assert "abc-1" in answer.error["message"]
    assert b"secret" not in answer.body
    assert answer.error["type"] == "server_error"
    assert "request abc-1" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (ContextLengthExceeded("too long", param="input"), 400, "false"),
        (StepFailed("the model failed"), 500, "false"),
        (WorkerDied("gone", retry_after_s=0.25), 503, "true"),
    ],
)
def test_what_a_replica_fails_with_is_what_the_client_gets(error: RequestError, status: int, retry: str) -> None:
    replica = FakeReplica(by_hand=True)
    with ServerThread(FakeModel("parrot", replicas=[replica])) as served:
        connection = served.connect()
        connection.request("POST", "/v1/echo", json.dumps({"model": "parrot", "input": "a"}))
        replica.next().fail(error)
        response = connection.getresponse()
        assert response.status == status
        assert response.headers["x-should-retry"] == retry
        assert json.loads(response.read())["error"]["code"] == error.code
        connection.close()


def test_a_full_queue_is_429_with_retry_after_in_both_forms(served: ServerThread, replica: FakeReplica) -> None:
    replica.rejection = QueueFull("The queue is full.", retry_after_s=1.2)
    answer = served.echo()
    assert answer.status == 429
    assert (answer.error["type"], answer.error["code"]) == ("rate_limit_error", "queue_full")
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("2", "1200")
    assert answer.headers["x-should-retry"] == "true"
    assert served.metric("sixfold:admission_rejections_total", model_name="parrot", reason="queue_full") == 1


def test_the_clients_request_id_comes_back_if_it_is_sane(served: ServerThread) -> None:
    assert served.echo(headers={"x-request-id": "trace-1:2.3"}).headers["x-request-id"] == "trace-1:2.3"
    for strange in ("a b", "x" * 129, "<script>", "-", ""):
        given = served.echo(headers={"x-request-id": strange}).headers["x-request-id"]
        assert given.startswith("req_")
    assert served.ask("GET", "/nothing").headers["x-request-id"].startswith("req_")
    assert served.ask("GET", "/health").headers["x-request-id"].startswith("req_")


def test_two_requests_with_one_id_are_two_requests_for_the_replica() -> None:
    replica = FakeReplica(by_hand=True)
    with ServerThread(FakeModel("parrot", replicas=[replica])) as served:
        connections = [served.connect() for _ in range(2)]
        for connection in connections:
            body = json.dumps({"model": "parrot", "input": "a"})
            connection.request("POST", "/v1/echo", body, {"x-request-id": "same"})
        first, second = replica.next(), replica.next()
        assert first.request.request_id != second.request.request_id
        assert {first.request.request_id.split("/")[0], second.request.request_id.split("/")[0]} == {"same"}
        first.finish()
        second.finish()
        for connection in connections:
            assert connection.getresponse().status == 200
            connection.close()


def test_headers_decide_priority_and_deadline() -> None:
    replica = FakeReplica(by_hand=True)
    with ServerThread(FakeModel("parrot", replicas=[replica]), settings=ServerSettings(request_timeout_s=50)) as served:
        for headers, priority, timeout_s in (
            ({}, Priority.STANDARD, 50.0),
            ({"x-priority": "batch", "x-request-timeout-s": "2.5"}, Priority.BATCH, 2.5),
            ({"x-priority": "Interactive", "x-request-timeout-s": "1e9"}, Priority.INTERACTIVE, 50.0),
        ):
            connection = served.connect()
            connection.request("POST", "/v1/echo", json.dumps({"model": "parrot", "input": "a"}), headers)
            submitted = replica.next()
            request = submitted.request
            assert request.deadline_s is not None
            assert request.deadline_s - request.arrived_s == pytest.approx(timeout_s)
            assert (request.priority, request.tenant) == (priority, "anonymous")
            submitted.finish()
            assert connection.getresponse().status == 200
            connection.close()


@pytest.mark.parametrize(
    "headers",
    [{"x-priority": "urgent"}, *({"x-request-timeout-s": value} for value in ("soon", "0", "-1", "nan", "inf"))],
)
def test_headers_that_make_no_sense_are_400(served: ServerThread, headers: dict[str, str]) -> None:
    answer = served.echo(headers=headers)
    assert answer.status == 400
    assert next(iter(headers)) in answer.error["message"]


@pytest.fixture
def narrow() -> Iterator[ServerThread]:
    settings = ServerSettings(max_body_bytes=2048, body_timeout_s=0.05)
    with ServerThread(FakeModel("parrot", replicas=[FakeReplica()]), settings=settings) as server:
        yield server


def test_a_body_that_is_too_large_is_413_by_its_declared_length(narrow: ServerThread) -> None:
    answer = narrow.echo("x" * 4096)
    assert (answer.status, answer.error["code"]) == (413, "payload_too_large")
    assert answer.headers["connection"] == "close"
    assert narrow.echo("x" * 1024).status == 200


def test_a_client_that_waits_for_100_continue_gets_413_before_it_sends_the_body(narrow: ServerThread) -> None:
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(
            b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 999999999\r\nexpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_that_grows_too_large_is_413(narrow: ServerThread) -> None:
    connection = narrow.connect()
    body = (b'{"model": "parrot", "input": "' if part == 0 else b"x" * 512 for part in range(16))
    connection.request("POST", "/v1/echo", body, {"content-type": "application/json"}, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["code"] == "payload_too_large"
    connection.close()


def test_a_chunked_body_within_the_limit_is_read_whole(narrow: ServerThread) -> None:
    connection = narrow.connect()
    body = iter((b'{"model": "parrot", ', b'"input": ', b'"a b c"}'))
    connection.request("POST", "/v1/echo", body, {"content-type": "application/json"}, encode_chunked=True)
    assert json.loads(connection.getresponse().read())["text"] == "a b c"
    connection.close()


def test_a_body_that_dribbles_in_is_refused_in_time(narrow: ServerThread) -> None:
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"body_timeout" in answer


def test_headers_that_dribble_in_close_the_connection() -> None:
    with (
        ServerThread(FakeModel("parrot"), settings=ServerSettings(header_timeout_s=0.05)) as served,
        socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as silent,
        socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as slow,
    ):
        slow.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ")
        assert slow.recv(10) == b""
        assert silent.recv(10) == b""


def test_endless_headers_are_431() -> None:
    with (
        ServerThread(FakeModel("parrot"), settings=ServerSettings(max_header_bytes=2048)) as served,
        socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as connection,
    ):
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx-long: " + b"y" * 4096)
        assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_the_openai_client_raises_its_own_errors(served: ServerThread) -> None:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(NotFoundError) as missing:
            client.post("/echo", cast_to=object, body={"model": "nobody", "input": "a"})
        assert missing.value.code == "model_not_found"
        with pytest.raises(BadRequestError) as bad:
            client.post("/echo", cast_to=object, body={"model": "parrot", "input": "a", "topp": 1})
        assert bad.value.param == "topp"
        assert bad.value.request_id is not None


def test_messages_to_clients_hold_no_paths_and_no_addresses() -> None:
    given = "cannot open /root/models/x/config.json or C:\\models\\x at 0x7f3a2b1c9d00 from 10.0.0.12:8000"
    assert sanitize(given) == "cannot open <path> or <path> at <address> from <address>"
    kept = "GET /v1/models lists all; org/model and 3.5/4 and 1/2/3 stay"
    assert sanitize(kept) == kept
